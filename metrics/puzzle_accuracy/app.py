"""The page of this metric on the Hub."""

import evaluate
from evaluate.utils import launch_gradio_widget

if __name__ == "__main__":
    launch_gradio_widget(evaluate.load("puzzle_accuracy.py"))
