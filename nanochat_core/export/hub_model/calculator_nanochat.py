"""Stands in for the file of an export of this name, which is a copy of the calculator itself."""

from nanochat_core.sandbox.calculator import calculate as calculate
