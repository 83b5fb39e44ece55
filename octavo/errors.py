"""Every error octavo raises on purpose, and what each becomes on the wire.

    OctavoError                  500  server_error
    ├── InvalidRequest           400  invalid_request_error   the caller's mistake; `param` names the field
    │   ├── ContextTooLong       400      code context_length_exceeded
    │   ├── RequestTooLarge      413      code request_too_large
    │   ├── UnsupportedMedia     415      code unsupported_content_type
    │   ├── Unauthorized         401      code invalid_api_key
    │   ├── Forbidden            403      code permission_denied
    │   ├── LoadFailed           400      code load_failed          an operator's wish; says why
    │   └── NotFound             404      unknown URL
    │       └── ModelNotFound    404      code model_not_found
    ├── StorageFull              507  server_error            the disk has no room for what was sent
    ├── Overloaded               503  overloaded_error        queue full: try again after `retry_after` seconds
    ├── RateLimited              429  rate_limit_error        one key's share is used up: as above
    ├── RequestTimeout           408  timeout_error           the request's time is over
    ├── RequestFailed            500  server_error            one request failed inside; the others go on
    ├── EngineDead               503  server_error            the engine process is gone
    ├── Asleep                   503  server_error            sent to sleep by its operator, who has to wake it
    ├── ConfigError              -    a flag or argument that cannot work
    └── CheckpointError          -    model files that cannot be served; names file and tensor

Messages are written for the person who caused the error: they say what is wrong and what to do, and never hold
prompts, keys, paths of the server or stack traces.
"""

from __future__ import annotations

from typing import ClassVar


class OctavoError(Exception):
    """Root of the tree. `status`, `type` and `code` are the HTTP face of the error."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str | None = None
    retry_after: int | None = None  # seconds after which the same request may succeed

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code


class InvalidRequest(OctavoError, ValueError):
    status = 400
    type = "invalid_request_error"


class ContextTooLong(InvalidRequest):
    code = "context_length_exceeded"


class RequestTooLarge(InvalidRequest):
    status = 413
    code = "request_too_large"


class UnsupportedMedia(InvalidRequest):
    status = 415
    code = "unsupported_content_type"


class Unauthorized(InvalidRequest):
    status = 401
    code = "invalid_api_key"


class Forbidden(InvalidRequest):
    status = 403
    code = "permission_denied"


class NotFound(InvalidRequest):
    status = 404


class ModelNotFound(NotFound):
    code = "model_not_found"


class StorageFull(OctavoError):
    status = 507
    code = "storage_full"


class LoadFailed(InvalidRequest):
    code = "load_failed"


class Overloaded(OctavoError):
    status = 503
    type = "overloaded_error"
    retry_after = 1


class RateLimited(OctavoError):
    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RequestTimeout(OctavoError):
    status = 408
    type = "timeout_error"
    code = "request_timeout"


class RequestFailed(OctavoError):
    pass


class EngineDead(OctavoError):
    status = 503


class Asleep(OctavoError):
    status = 503
    code = "engine_asleep"


class ConfigError(OctavoError, ValueError):
    pass


class CheckpointError(OctavoError):
    pass
