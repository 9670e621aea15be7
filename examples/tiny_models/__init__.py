"""A worked example: train and measure the tiny policy and reward models of the package.

`python -m examples.tiny_models --help` lists the stages; README.md beside this file says what each
one writes and how long it takes. None of this is in the wheel.
"""
