"""Waiting for another deployment or a store, but not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any


async def within(call: Awaitable[Any], seconds: float) -> Any:
    """What `call` answers. Raises TimeoutError if that takes longer; a call to a deployment is then told to stop."""

    async def awaited() -> Any:
        return await call

    try:
        return await asyncio.wait_for(awaited(), seconds)
    except TimeoutError:
        if hasattr(call, "cancel"):
            call.cancel()
        raise
