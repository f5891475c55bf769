"""Every error that medge raises on purpose.

A class knows its HTTP status and its OpenAI `type` and `code`, so that one handler in
`server/app.py` and one in `cli.py` serve them all. A message says what is wrong, the value, and the remedy.
"""

from __future__ import annotations


class MedgeError(Exception):
    """Root of the tree.

    Args:
        message: one sentence for a person: what, the value, the remedy.
        param: the field of the request, or the name of the setting, that is at fault.
        retry_after_s: when it makes sense to try again, in seconds.
    """

    status = 500
    type = "server_error"
    code = "internal_error"

    def __init__(self, message: str, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message, param, retry_after_s)  # all of them: exceptions are pickled by args
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message


class InvalidRequest(MedgeError):
    """The caller asked for something that has no meaning or is out of range."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class Unsupported(InvalidRequest):
    """A field that OpenAI's API has and medge does not honour: refused by name, never ignored."""

    code = "unsupported_parameter"


class ContextLengthExceeded(InvalidRequest):
    """The prompt does not fit the context of a slot. Raised before any work is done."""

    code = "context_length_exceeded"


class InvalidGrammar(InvalidRequest):
    """A GBNF grammar or a JSON schema that cannot be used."""

    code = "invalid_grammar"


class InvalidTemplate(InvalidRequest):
    """The model's chat template is missing, broken, or refuses these messages."""

    code = "invalid_chat_template"


class Unauthorized(InvalidRequest):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class ForbiddenHost(InvalidRequest):
    status = 403
    type = "permission_error"
    code = "host_not_allowed"


class NotFound(InvalidRequest):
    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class RequestTimeout(InvalidRequest):
    """The client took too long to send its request."""

    status = 408
    code = "request_timeout"


class BodyTooLarge(InvalidRequest):
    status = 413
    code = "request_too_large"


class QueueFull(MedgeError):
    status = 429
    type = "rate_limit_error"
    code = "queue_full"


class MemoryShort(MedgeError):
    """The kernel reports that memory is short: new requests have to wait, those that run go on."""

    status = 503
    code = "memory_short"


class Cancelled(MedgeError):
    """The client has gone, or asked to stop."""

    status = 499
    code = "cancelled"


class DecodeFailed(MedgeError):
    code = "decode_failed"


class Unavailable(MedgeError):
    """The engine cannot answer now."""

    status = 503
    code = "unavailable"


class EngineClosed(Unavailable):
    code = "engine_closed"


class EngineDied(Unavailable):
    """The engine's process ended or hung while it was answering."""

    code = "engine_died"


class InvalidModel(Unavailable):
    """A model file that is missing, damaged, or of a kind that this runtime cannot run."""

    code = "invalid_model"


class NotEnoughMemory(Unavailable):
    code = "not_enough_memory"


class DeadlineExceeded(MedgeError):
    status = 504
    type = "timeout_error"
    code = "deadline_exceeded"


class InvalidSetting(MedgeError):
    """A flag, environment variable or TOML key that is unknown or out of range."""

    code = "invalid_setting"
