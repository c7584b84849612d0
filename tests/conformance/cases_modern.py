"""Cases, as in `cases.py`, of Adam's modern family."""

import functional_opt as fo

from . import references_modern as ref
from .case import case

ADAM = "learning_rate b1 b2 eps weight_decay"
DECAY = {"weight_decay": 0.1}
LOW = {"rank": 2, "update_proj_gap": 7, "weight_decay": 0.1}
SPIKES = {"threshold": 500.0, "reset_interval": 20, "warmup_steps": 5, "settle_steps": 3, "weight_decay": 0.1}
CAREFUL = {"learning_rate": 0.05, "weight_decay": 0.1, "eps": 1.0}


def within_adam(learning_rate, eps):
    return fo.cautious(fo.adam(learning_rate), eps)


def cautious_decay(learning_rate, weight_decay, eps):
    rule = fo.scale_by_cautious(fo.trace(0.5), eps)
    decay = fo.add_cautious_decayed_weights(weight_decay)
    return fo.chain(rule, decay, fo.scale_by_learning_rate(learning_rate))


def falling(learning_rate):
    return fo.linear_schedule(learning_rate, learning_rate / 2, 100)


def adamc(learning_rate, weight_decay, b1):
    return fo.adamc(falling(learning_rate), learning_rate, b1, weight_decay=weight_decay)


def ahead(learning_rate, lookahead, decay, momentum):
    return fo.ema_nesterov(fo.sgd(learning_rate, momentum), lookahead, decay, start_step=3, end_step=40)


AHEAD = {"learning_rate": 0.02, "lookahead": 0.5, "decay": 0.9, "momentum": 0.5}

OPTIMIZERS = [
    case("ema_nesterov", ahead, None, ref.ema_nesterov, " ".join(AHEAD), **AHEAD),
    case("adamc", adamc, None, ref.adamc, "learning_rate weight_decay b1", learning_rate=0.1, b1=0.8, **DECAY),
    case("stable_adamw", fo.stable_adamw, None, ref.stable_adamw, ADAM, learning_rate=0.1, **DECAY),
    case("laprop", fo.laprop, None, ref.laprop, ADAM, learning_rate=0.1, **DECAY),
    case("mars", fo.mars, None, ref.mars, f"{ADAM} gamma", learning_rate=0.1, gamma=0.1, **DECAY),
    case("adam_mini", fo.adam_mini, None, ref.adam_mini, ADAM, learning_rate=0.1, **DECAY),
    case("apollo", fo.apollo, None, ref.apollo, "learning_rate scale weight_decay", learning_rate=0.1, **LOW),
    case("apollo_mini", fo.apollo_mini, None, ref.apollo_mini, "learning_rate scale", learning_rate=0.05, scale=2.0),
    case("spam", fo.spam, None, ref.spam, f"{ADAM} threshold", learning_rate=0.03, **SPIKES),
    case("spam-sparse", fo.spam, None, ref.spam, f"{ADAM} threshold", learning_rate=0.03, density=0.5, **SPIKES),
    case("cautious", within_adam, None, ref.cautious, "learning_rate eps", learning_rate=0.1, eps=0.5),
    case(
        "scale_by_cautious",
        cautious_decay,
        None,
        ref.cautious_decay,
        "weight_decay",
        learning_rate=0.05,
        eps=1.0,
        **DECAY,
    ),
]

TRANSFORMATIONS = [
    case("scale_by_stable_adamw", fo.scale_by_stable_adamw, None, None, "b1 b2 eps"),
    case("scale_by_laprop", fo.scale_by_laprop, None, None, "b1 b2 eps"),
    case("scale_by_mars", fo.scale_by_mars, None, None, "b1 b2 eps gamma"),
    case("scale_by_adam_mini", fo.scale_by_adam_mini, None, None, "b1 b2 eps", block={"*/kernel": (2, -1)}),
    case(
        "scale_by_apollo", fo.scale_by_apollo, None, None, "b1 b2 eps update_proj_gap", max_norm_growth=None, rank=1
    ),
    case("scale_by_spam", fo.scale_by_spam, None, None, "b1 b2 eps threshold warmup_steps", settle_steps=2),
    case("scale_by_spam-sparse", fo.scale_by_spam, None, None, "b1 b2 eps", density=0.5, reset_interval=2),
    case("add_cautious_decayed_weights", fo.add_cautious_decayed_weights, None, None, "weight_decay", **DECAY),
]
