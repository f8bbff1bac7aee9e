"""Comparisons with scripted workers: what is planned, kept, gone on with, and claimed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from defusedxml import ElementTree
from rich.console import Console

from sensorium.compare.alike import built_in, on_data, questions, with_language, with_room
from sensorium.compare.budget import Budget, parse_budget, shares, steps_of
from sensorium.compare.calibrate import Speed
from sensorium.compare.plan import Entry, Plan, Wanted, planned
from sensorium.compare.plot import plot_svg
from sensorium.compare.row import Answered
from sensorium.compare.run import compare
from sensorium.compare.significance import Scored, differences, holm
from sensorium.compare.table import markdown_of
from sensorium.compare.vary import CONNECTORS, varied
from sensorium.data.stream import Stream
from sensorium.errors import UserError
from sensorium.evaluate.statistics import Evaluation
from sensorium.recipes.catalog import find
from sensorium.train.trainer import Stopped
