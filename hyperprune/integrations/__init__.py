"""Training loops that are not yours: each integration is a few lines over ``Search``.

* Lightning: ``hyperprune.integrations.lightning.HyperPrune``, a callback.
* Hugging Face Trainer, Accelerate, and every other loop that calls ``optimizer.step()``: no code of ours is needed.
  ``Search(hyper, optimizer, budget, steps).attach(optimizer)`` steps by itself; see ``examples/``.
"""
