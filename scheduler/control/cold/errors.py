"""What a cold RPC is answered when it fails."""

from __future__ import annotations

import grpc


class ColdError(Exception):
    """The answer to a cold RPC is this status."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
