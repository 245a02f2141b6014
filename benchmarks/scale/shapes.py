"""Sizes that follow from a model's shape alone: parameters, edges, work of one forward, caches.

They are exact, and what a search costs is measured in units of them (see `benchmarks.scale.fit`).
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.models import Case

FLOAT = 4
"""Bytes of a number in FP32."""


@dataclass(frozen=True)
class Shape:
    """A transformer and a batch of prompts.

    Attributes:
        name: what it is called in tables.
        layers, heads, width, d_head, d_mlp, vocabulary: of the model.
        prompts, length: of the batch, ``length`` in tokens.
        kv_heads: keys and values that groups of heads share; ``heads`` for none shared. The search
            needs them repeated for each head (`pahq_plugin.adapt`), which is what counts but for
            `published_parameters`.
        positions: learned positions; 0 for rotary ones.
        gated: whether an MLP has a third matrix, and norms have no bias.
        biases: whether the published model's products have a bias; the host's always have.
        tied: whether the published model embeds and unembeds with one matrix.
    """

    name: str
    layers: int
    heads: int
    width: int
    d_head: int
    d_mlp: int
    vocabulary: int
    prompts: int
    length: int
    kv_heads: int
    positions: int = 0
    gated: bool = False
    biases: bool = True
    tied: bool = False

    @classmethod
    def of(cls, case: Case) -> Shape:
        """The shape of a random model of `benchmarks.models`."""
        return cls(
            case.name, case.layers, case.heads, case.width, case.width // case.heads, case.d_mlp,
            case.vocabulary, case.prompts, case.length, case.heads, 0 if case.gated else case.length,
            case.gated,
        )  # fmt: skip

    # The graph -----------------------------------------------------------------------------------

    @property
    def nodes(self) -> int:
        """Sources of the graph: the embedding, every head, every MLP."""
        return 1 + self.layers * (self.heads + 1)

    @property
    def edges(self) -> int:
        """Edges between them, with separate queries, keys and values; MLPs behind their heads."""
        edges = self.nodes  # into the output
        for layer in range(self.layers):
            before = 1 + layer * (self.heads + 1)
            edges += 3 * self.heads * before + before + self.heads
        return edges

    # Weights -------------------------------------------------------------------------------------

    def _matrices(self, kv_heads: int) -> int:
        """Entries of the matrices of one block."""
        attention = 2 * (self.heads + kv_heads) * self.d_head * self.width
        return attention + (3 if self.gated else 2) * self.width * self.d_mlp

    @property
    def _norm(self) -> int:
        """Entries of one norm."""
        return self.width if self.gated else 2 * self.width

    def _biases(self, kv_heads: int) -> int:
        """Entries of the biases of one block."""
        return (self.heads + 2 * kv_heads) * self.d_head + self.d_mlp + 2 * self.width

    def _parameters(self, kv_heads: int, tied: bool, biases: bool) -> int:
        block = self._matrices(kv_heads) + 2 * self._norm + biases * self._biases(kv_heads)
        embeddings = (1 if tied else 2) * self.vocabulary * self.width + self.positions * self.width
        return self.layers * block + embeddings + self._norm

    @property
    def published_parameters(self) -> int:
        """Parameters as the model's authors count them."""
        return self._parameters(self.kv_heads, self.tied, self.biases)

    @property
    def parameters(self) -> int:
        """Parameters as the search holds them: keys and values of every head, the two embeddings
        apart, and biases of all products, also of the unembedding."""
        return self._parameters(self.heads, tied=False, biases=True) + self.vocabulary

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights in FP32."""
        return FLOAT * self.parameters

    # Work ----------------------------------------------------------------------------------------

    @property
    def tokens(self) -> int:
        """Tokens of the batch."""
        return self.prompts * self.length

    @property
    def forward_products(self) -> int:
        """Multiply-adds of the blocks in one forward of the batch."""
        pairs = 2 * self.heads * self.d_head * self.length
        return self.layers * self.tokens * (self._matrices(self.heads) + pairs)

    @property
    def unembedding_products(self) -> int:
        """Multiply-adds of the logits at the last position of every prompt."""
        return self.prompts * self.width * self.vocabulary

    @property
    def forward_bytes(self) -> int:
        """Bytes of every input that edges lead to (three for a head, one for an MLP) and of a block's
        output, in one forward of the batch."""
        return FLOAT * self.layers * self.tokens * (3 * self.heads + 2) * self.width

    # Memory --------------------------------------------------------------------------------------

    @property
    def cache_bytes(self) -> int:
        """Bytes of the cached source outputs, of the present and of the ablated run, see
        `pahq_plugin.engines.incremental.source_outputs.Sources`."""
        values = self.width + self.layers * (self.heads * self.d_head + self.width)
        return 2 * FLOAT * self.tokens * values

    def copy_bytes(self, head_bits: int, mlp_bits: int) -> int:
        """Bytes of second copies of the blocks' matrices in formats of so many bits."""
        mlp = (3 if self.gated else 2) * self.width * self.d_mlp
        heads = self._matrices(self.heads) - mlp
        return self.layers * (heads * head_bits + mlp * mlp_bits) // 8

    @property
    def row_bytes(self) -> int:
        """The most that one row of a pass may hold: what every node changes, and the weights of one
        projection of some heads of a layer, side by side."""
        return self.cache_bytes // 2 + FLOAT * self.heads * self.d_head * self.width


def gpt2_xl(prompts: int, length: int) -> Shape:
    """GPT-2 XL."""
    return Shape(
        "GPT-2 XL", 48, 25, 1600, 64, 6400, 50257, prompts, length, 25, positions=1024, tied=True
    )  # fmt: skip


def llama_8b(prompts: int, length: int) -> Shape:
    """Llama 3 8B: gated, rotary, without biases, a key and a value for four heads each."""
    return Shape(
        "Llama 3 8B", 32, 32, 4096, 128, 14336, 128256, prompts, length, 8, gated=True, biases=False
    )  # fmt: skip


def gpt2_small(prompts: int, length: int) -> Shape:
    """GPT-2 small."""
    return Shape(
        "GPT-2 small", 12, 12, 768, 64, 3072, 50257, prompts, length, 12, positions=1024, tied=True
    )  # fmt: skip
