"""Export one ACT step for other runtimes: ONNX, and int8 ONNX for CPUs.

    python scripts/export.py --model checkpoints/air-sudoku-9x9 --output-dir exported              # model.onnx
    python scripts/export.py --model DIR --output-dir exported --format onnx int8

The graph is (input_ids, puzzle_ids, z_h, z_l) -> (logits, q_halt_logits, q_continue_logits, next_z_h, next_z_l),
float32, any batch size. Start from the states in start.npz (z_h, z_l, each (T, D)), feed the next ones back, and stop
after a fixed number of steps or by the model's own rule: q_halt_logits > q_continue_logits, or > 0 where the model was
trained without q_continue. export.json says which ("halts_where"), and how far the graph is off after one step.
"""

import argparse
import json
import sys
from pathlib import Path

if not __package__:
    import _checkout  # noqa: F401

from air_model.publishing.export import FORMATS, export
from air_model.scripts.door import in_sentences


@in_sentences("export", extra="export")
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model folder or Hub id")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=["onnx"])
    args = parser.parse_args(argv)
    print(json.dumps(export(args.model, args.output_dir, args.format), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
