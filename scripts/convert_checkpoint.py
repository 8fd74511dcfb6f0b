"""Turn a public AIR, HRM or TRM training checkpoint into a model folder that AutoModel loads.

    python scripts/convert_checkpoint.py --checkpoint checkpoints/run/step_26040 --seq-len 81 --output-dir air-sudoku
    python scripts/convert_checkpoint.py --checkpoint maze/step_13020 --seq-len 900 --output-dir air-maze
    python scripts/convert_checkpoint.py --checkpoint arc/step_1000 --seq-len 900 --task grid --output-dir hrm-arc

The checkpoint is the public code's `step_N`, read with weights_only=True; the architecture comes from the
`all_config.yaml` beside it. Nothing is written unless everything fits.
"""

import argparse
import sys
from pathlib import Path

if not __package__:
    import _checkout  # noqa: F401

from air_model.publishing.convert import convert
from air_model.scripts.door import in_sentences
from air_model.training.checkpoints import write_model_folder


@in_sentences("convert_checkpoint")
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="public `step_N`, beside its all_config.yaml")
    add("--seq-len", type=int, required=True, help="cells of a puzzle: 81 for Sudoku, 900 for the maze")
    add("--task", choices=["sudoku", "maze", "grid"], help="default: guessed from vocabulary and data path")
    add("--output-dir", type=Path, required=True, help="new folder for the model")
    args = parser.parse_args(argv)
    model = convert(args.checkpoint, args.seq_len, args.task)
    if args.output_dir.exists() and any(args.output_dir.iterdir()):
        raise FileExistsError(f"{args.output_dir} exists and is not empty: choose another or remove it.")
    write_model_folder(model, args.output_dir)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{args.output_dir}: {model.config.rule_name}, {parameters:,} parameters, {model.dtype}.")
    print(f'Load it with AutoModel.from_pretrained("{args.output_dir}", trust_remote_code=True)')
    return 0


if __name__ == "__main__":
    sys.exit(main())
