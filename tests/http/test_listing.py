"""`/v1/models`: what clients are told of a model, before anybody has asked it anything."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.catalog.builders import write_gguf

from modelyard.config import Config, Devices
from modelyard.core.shaping import Shape, Target, VirtualModel
from modelyard.core.specs import ModelSpec, Task
from modelyard.testing.server import fake_model, running

pytestmark = pytest.mark.usefixtures("nothing_left")
