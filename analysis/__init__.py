"""What the two states do: roll-outs, interventions, freeze and attention studies, geometry, figures, reports.

Everything watches `AirModel.solve` through its hooks; there is no second recurrence. `common.Study` is a model with
the puzzles it is studied on; `rollout`, `freeze`, `attention` and `geometry` hold one study each, `interventions`
what may be done to the states, `figures` and `plots` the pictures, `commands` and `report` what scripts/analyze.py
writes. `evaluation` measures accuracy.
"""
