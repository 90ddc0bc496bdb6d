"""What ``hyperprune prune`` does for people without a training loop.

``settings`` says what is asked, ``data`` yields images, ``networks`` builds the dense network; ``job`` holds the three
together. ``learner`` takes the steps, ``phases`` strings them together, ``states`` keeps them on disk, ``stopping``
heeds Ctrl-C, ``screen`` shows what goes on, ``spending`` measures what came of the budget. ``run`` tells the story.
"""

from hyperprune.training.job import Machine
from hyperprune.training.run import run_prune, summary
from hyperprune.training.screen import Screen
from hyperprune.training.settings import TrainingSettings, started

__all__ = ["Machine", "Screen", "TrainingSettings", "run_prune", "started", "summary"]
