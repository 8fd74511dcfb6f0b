"""Training: train_accelerate.py is the door, run.py a whole run, trainer.py its loop, batches.py what goes in."""
