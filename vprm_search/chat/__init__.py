"""What policies and judges need of a chat model: calls repeated where that can help, and its gifts.

`failures` is the one classification of failed calls, used for scoring servers too; `calls` bounds
and repeats calls; `capabilities` knows what a model can do, and `context_window` how long its
answers may be.
"""
