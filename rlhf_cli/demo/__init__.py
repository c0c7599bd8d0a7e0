"""A toy world whose true preference is known: a village, how it speaks, what an answer is worth, and a base model."""

from __future__ import annotations

from pathlib import Path

BASE = Path(__file__).with_name("base")
"""The base model, as `rlhf_cli.demo.base_model` made it."""
INSTRUCTIONS = Path(__file__).with_name("instructions.jsonl")
"""Short questions with one right answer each, in Alpaca's columns; written for this project."""
RECIPES = Path(__file__).with_name("recipes")
"""The recipes of the demo; their paths are below `demo/`."""
