"""A DQN with a replay buffer and a target network, in the shape of Keras's deep Q-learning example: balances a pole.

What a port changes: `tf.function` becomes `keras.function`; the GradientTape becomes `keras.value_and_grad`, with the
loss as a function; `tf.one_hot`, `tf.reduce_max` and the like become JAX's. `assign` still
updates the target network. The environment is Gym's CartPole-v1, written out.
"""

import argparse
from collections import deque

import jax
import jax.numpy as jnp
import numpy as np

from functional_opt import keras

LIMIT, GAMMA, BATCH_SIZE = 200, 0.98, 64
TRAIN_EVERY, UPDATE_TARGET_EVERY = 2, 200


class CartPole:
    """Push a cart left or right so that the pole on it does not fall."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def reset(self):
        self.state, self.steps = self.rng.uniform(-0.05, 0.05, 4), 0
        return self.state.astype(np.float32)

    def step(self, action):
        x, speed, angle, turn = self.state
        push = (10.0 if action else -10.0) + 0.05 * turn**2 * np.sin(angle)
        turning = 9.8 * np.sin(angle) - np.cos(angle) * push / 1.1
        turning /= 2 / 3 - 0.05 * np.cos(angle) ** 2 / 1.1
        pushing = (push - 0.05 * turning * np.cos(angle)) / 1.1
        self.state = self.state + 0.02 * np.array([speed, pushing, turn, turning])
        self.steps += 1
        fell = abs(self.state[0]) > 2.4 or abs(self.state[2]) > 0.2095
        return self.state.astype(np.float32), 1.0, fell, self.steps >= LIMIT


def create_q_model(name, rng, sizes=(4, 64, 64, 2)):
    variables = []
    for i, (n, m) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        kernel = rng.normal(0, (2 / n) ** 0.5, (n, m)).astype(np.float32)
        variables.append(keras.Variable(kernel, name=f"{name}/dense_{i}/kernel"))
        variables.append(keras.Variable(jnp.zeros(m), name=f"{name}/dense_{i}/bias"))
    return variables


def predict(variables, states):
    *hidden, kernel, bias = variables
    for w, b in zip(hidden[::2], hidden[1::2], strict=True):
        states = jax.nn.relu(states @ w + b)
    return states @ kernel + bias


def main(steps=6000):
    """Returns the lengths of all episodes, the model's variables and the target's."""
    rng, env, replay = np.random.default_rng(0), CartPole(seed=0), deque(maxlen=20_000)
    model, model_target = create_q_model("q", rng), create_q_model("target", rng)
    optimizer = keras.optimizers.Adam(learning_rate=1e-3, clipnorm=1.0)

    def update_target():
        for target, variable in zip(model_target, model, strict=True):
            target.assign(variable)

    @keras.function
    def act(state):
        return jnp.argmax(predict(model, state[None])[0])

    @keras.function
    def train_step(states, actions, rewards, next_states, done):
        future_rewards = jnp.max(predict(model_target, next_states), axis=1)
        updated_q_values = rewards + GAMMA * future_rewards * (1 - done)

        def loss_function():
            q_action = jnp.sum(predict(model, states) * jax.nn.one_hot(actions, 2), axis=1)
            error = jnp.abs(updated_q_values - q_action)
            return jnp.mean(jnp.where(error < 1, error**2 / 2, error - 0.5))  # Huber

        loss, grads = keras.value_and_grad(loss_function, model)
        optimizer.apply_gradients(zip(grads, model))
        return loss

    update_target()
    lengths, state = [], env.reset()
    for step in range(1, steps + 1):
        epsilon = max(0.05, 1 - step / 2000)
        action = rng.integers(2) if rng.random() < epsilon else int(act(state))
        next_state, reward, fell, is_over = env.step(action)
        replay.append((state, action, np.float32(reward), next_state, np.float32(fell)))
        state = next_state
        if fell or is_over:
            lengths.append(env.steps)
            state = env.reset()
        if step % TRAIN_EVERY == 0 and len(replay) >= BATCH_SIZE:
            batch = [replay[i] for i in rng.integers(len(replay), size=BATCH_SIZE)]
            train_step(*(np.array(column) for column in zip(*batch, strict=True)))
        if step % UPDATE_TARGET_EVERY == 0:
            update_target()
    print(
        f"{len(lengths)} episodes: the pole stood for {np.mean(lengths[:10]):.0f} steps in the first 10, "
        f"{np.mean(lengths[-10:]):.0f} in the last 10 (at most {LIMIT})"
    )
    return lengths, model, model_target


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6000)
    main(parser.parse_args().steps)
