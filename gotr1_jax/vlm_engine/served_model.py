"""What a server says about the model behind a name."""

from __future__ import annotations

import asyncio
import hashlib
import json
import ssl
from collections.abc import Mapping
from typing import Any

import httpx2

from gotr1_jax.errors import InputError
from gotr1_jax.io.reading import parse_json_object

_SECONDS = 5.0
_MAX_BODY = 2**20  # bytes
# Of an entry of /models, what belongs to the weights: the path they were loaded from, the model
# below an adapter, the sizes. Not `created` and `permission`, which servers make up anew each time.
_FIELDS = ("root", "parent", "meta", "digest", "revision")


async def served_model(
    url: httpx2.URL, name: str, headers: Mapping[str, str], tls: ssl.SSLContext
) -> str:
    """8 hex digits of what URL/models says of the weights of the model `name`; "" for nothing.

    A server need not have such a list, and may not be there yet: neither is an error here.
    """
    data = bytearray()
    try:
        async with (
            asyncio.timeout(_SECONDS),
            httpx2.AsyncClient(
                headers=dict(headers), trust_env=False, verify=tls, timeout=None
            ) as client,
            client.stream("GET", url.copy_with(path=f"{url.path.rstrip('/')}/models")) as response,
        ):
            async for chunk in response.aiter_raw():
                data += chunk
                if len(data) > _MAX_BODY:
                    return ""
        models = parse_json_object(bytes(data), "models").get("data")
    except (TimeoutError, httpx2.HTTPError, OSError, InputError):
        return ""
    if response.status_code != 200 or not isinstance(models, list):
        return ""
    return _describe(models, name)


def _describe(models: list[Any], name: str) -> str:
    for model in models:
        if isinstance(model, dict) and model.get("id") == name:
            described = {key: model[key] for key in _FIELDS if model.get(key) not in (None, name)}
            text = json.dumps(described, sort_keys=True)
            return hashlib.sha256(text.encode()).hexdigest()[:8] if described else ""
    return ""
