"""Fixtures that several files share."""

from __future__ import annotations

from tests.pipeline_project import fresh, project, run, unrun, whole

__all__ = ["fresh", "project", "run", "unrun", "whole"]
