"""The handlers of the data plane: every chat call of this process goes through here, whichever
transport brought it.
"""

from runtime import refusals
from runtime.calls import ServerCall
from services.router.chat_call import ChatCall
from services.router.parts import Parts


class ChatExecution:
    """Serves chat calls, at most ``calls_max`` at once."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.active = 0

    async def chat(self, call: ServerCall) -> None:
        """``ChatService.Chat``. Raises OVERLOADED at once when there is no room."""
        if self.active >= self._parts.settings.calls_max:
            raise refusals.overloaded()
        in_flight = self._parts.meters.in_flight
        self.active += 1
        in_flight.value += 1
        try:
            await ChatCall(self._parts, call).run()
        finally:
            self.active -= 1
            in_flight.value -= 1
