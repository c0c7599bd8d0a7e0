"""A toy world: a tiny model and a small instruction set, for trying things out on any machine."""

from __future__ import annotations

from pathlib import Path

INSTRUCTIONS = Path(__file__).with_name("instructions.jsonl")
"""Short questions with one right answer each, in Alpaca's columns; written for this project."""
