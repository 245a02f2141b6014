"""Axis glossary: what the axes of every tensor are called, here and in all docstrings.

Shapes are written ``[candidate batch pos head d_head]`` and the like; the axes that a tensor has
always stand in the order ``candidate batch pos head d_head | d_model`` (the last one either of the
two, or one of those below).

=============  ====================================================================================
candidate      edges tested in one pass: row 0 is the present state, row i the i-th candidate's
batch          prompts of one loader batch; ``prompt`` where one number per prompt is left
pos            token positions of a prompt; ``q_pos`` and ``k_pos`` where two of them meet
head           attention heads of one layer, queries' heads where keys have fewer (grouped query)
d_head         width of one head's query, key, value or value mix
d_model        width of the residual stream
d_mlp          width of an MLP's hidden layer
vocab          logits, one per token of the output vocabulary
layer          transformer blocks, in order of execution
src            source nodes: the embedding, head outputs, MLP outputs
dest           destination nodes: head inputs (Q, K, V apart or as one), MLP inputs, the output
=============  ====================================================================================

Weights follow TransformerLens: ``W_Q``, ``W_K``, ``W_V`` are ``[head d_model d_head]`` and ``W_O``
is ``[head d_head d_model]``.
"""
