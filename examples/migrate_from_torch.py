"""A model that torch's AdamW trained for 100 steps, carried on in JAX.

`python examples/migrate_from_torch.py` needs torch; the migration itself is the ten lines of `carry_on`.
"""

import jax.numpy as jnp
import torch

import functional_opt as fo
from functional_opt.interop.torch import from_torch

torch.manual_seed(0)
X = torch.rand(256, 2) * 2 - 1
Y = torch.sin(3 * X[:, :1]) * X[:, 1:]


def loss_fn(params, x, y):
    hidden = jnp.tanh(x @ params["0.weight"].T + params["0.bias"])
    return jnp.mean((hidden @ params["2.weight"].T + params["2.bias"] - y) ** 2)


def train_with_torch(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(X), Y)
        loss.backward()
        optimizer.step()
    return loss.item()


def carry_on(model, optimizer, steps):
    params = {name: jnp.array(p.detach().numpy()) for name, p in model.named_parameters()}
    tx, state = from_torch(optimizer, params, list(params))
    step = fo.make_train_step(loss_fn, donate=False)
    for _ in range(steps):
        params, state, loss = step(tx, params, state, jnp.asarray(X.numpy()), jnp.asarray(Y.numpy()))
    return float(loss)


def main():
    model = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    before = train_with_torch(model, optimizer, 100)
    here = carry_on(model, optimizer, 100)
    there = train_with_torch(model, optimizer, 100)
    print(f"loss after 100 steps of torch          {before:.6f}")
    print(f"after 100 more, of functional_opt      {here:.6f}")
    print(f"after 100 more, of torch instead       {there:.6f}")
    return before, here, there


if __name__ == "__main__":
    main()
