"""Composes one chain: clipping, Adam, weight decay of all but the biases, and a cosine schedule with warm-up."""

import functional
import task
from task import Digits

import functional_opt as fo

schedule = fo.warmup_cosine_decay_schedule(init_value=0.0, peak_value=5e-3, warmup_steps=50, decay_steps=660)
tx = fo.chain(
    fo.clip_by_global_norm(1.0),
    fo.scale_by_adam(),
    fo.add_decayed_weights(0.01, mask={"*/bias": False}),
    fo.scale_by_learning_rate(schedule),
)


def train(batches):
    return functional.train(batches, tx)


if __name__ == "__main__":
    print(tx)
    digits = Digits.load()
    params, _ = train(digits.batches(epochs=30))
    print(f"test accuracy {task.accuracy(params, *digits.test):.1%}")
