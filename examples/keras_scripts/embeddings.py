"""Word embeddings with sparse gradients, as in TensorFlow's word2vec tutorial: skip-grams with negative sampling.

What a port changes: `tf.gather(table, ids)`, or an Embedding layer's call, becomes `table.sparse_read(ids)`. The
gradient is then IndexedSlices, as in TensorFlow: a step costs what the rows of its batch cost, not the whole table.
The corpus is generated: each sentence is about one topic, so words of a topic should end up next to one another.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from functional_opt import keras

VOCABULARY, TOPICS, DIMENSION, NEGATIVES, BATCH_SIZE = 2000, 20, 16, 4, 256


def make_corpus(rng, sentences=20_000, length=8):
    """Returns sentences as rows of words; word i belongs to topic i % TOPICS. One word in eight is off topic."""
    words = rng.integers(VOCABULARY // TOPICS, size=(sentences, length)) * TOPICS
    words += rng.integers(TOPICS, size=(sentences, 1))
    return np.where(rng.random(words.shape) < 1 / 8, rng.integers(VOCABULARY, size=words.shape), words)


def skipgrams(corpus, rng):
    """Returns a batch: words, and for each a word from next to it followed by words from anywhere."""
    row, place = rng.integers(len(corpus), size=BATCH_SIZE), rng.integers(corpus.shape[1] - 1, size=BATCH_SIZE)
    negatives = rng.integers(VOCABULARY, size=(BATCH_SIZE, NEGATIVES))
    return corpus[row, place], np.column_stack([corpus[row, place + 1], negatives])


class Word2Vec:
    def __init__(self, rng):
        shape = VOCABULARY, DIMENSION
        self.target_embedding = keras.Variable(rng.uniform(-0.5, 0.5, shape), name="w2v_embedding", dtype="float32")
        self.context_embedding = keras.Variable(rng.uniform(-0.5, 0.5, shape), name="context", dtype="float32")
        self.trainable_variables = [self.target_embedding, self.context_embedding]

    def __call__(self, targets, contexts):
        word_embeddings = self.target_embedding.sparse_read(targets)  # (batch, dimension)
        context_embeddings = self.context_embedding.sparse_read(contexts)  # (batch, 1 + negatives, dimension)
        return jnp.einsum("be,bce->bc", word_embeddings, context_embeddings)


def loss_function(logits):
    """The cross-entropy of telling the first context, which is true, from the others."""
    return -jax.nn.log_softmax(logits)[:, 0].mean()


def neighbours(embedding):
    """Returns how many of the words have a word of their topic as their nearest neighbour."""
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    nearest = (unit @ unit.T - 2 * np.eye(len(unit))).argmax(axis=1)
    return float((nearest % TOPICS == np.arange(len(unit)) % TOPICS).mean())


def main(steps=1500):
    """Returns the losses, and the share of words that have a neighbour of their topic, before and after training."""
    rng = np.random.default_rng(0)
    corpus, word2vec = make_corpus(rng), Word2Vec(rng)
    before = neighbours(word2vec.target_embedding.numpy())
    optimizer = keras.optimizers.Adagrad(learning_rate=0.1, initial_accumulator_value=1e-6)

    targets, contexts = skipgrams(corpus, rng)
    _, (gradient, _) = keras.value_and_grad(
        lambda: loss_function(word2vec(targets, contexts)), word2vec.trainable_variables
    )
    print(f"a batch reads {len(set(targets.tolist()))} of {VOCABULARY} words; its gradient is {gradient}")

    step = optimizer.make_train_step(lambda targets, contexts: loss_function(word2vec(targets, contexts)))
    losses = [float(step(*skipgrams(corpus, rng))) for _ in range(steps)]
    after = neighbours(word2vec.target_embedding.numpy())
    print(f"loss {np.mean(losses[:10]):.3f} to {np.mean(losses[-10:]):.3f}")
    print(f"words with a neighbour of their topic: {before:.1%} to {after:.1%}")
    return losses, before, after


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    main(parser.parse_args().steps)
