"""What several routers know together, put together and started: limits and cool-downs in Valkey."""

from contextlib import AsyncExitStack
from pathlib import Path

from runtime.clock import SystemClock, SystemEntropy
from runtime.config import Settings
from runtime.metrics import Metrics
from runtime.rules import ConfigError, Problem
from runtime.secrets import Secret, SecretError, read_secret
from services.router.limits import limit_scripts
from services.router.limits.cooldowns import COOL, IN_FORCE, SharedCooldowns
from services.router.limits.membership import Member
from services.router.limits.shared_limits import SharedLimits
from services.router.limits.valkey_link import Link, Subscription
from services.router.parts import Shared
from services.router.routing.health import Health


async def share(
    settings: Settings, stack: AsyncExitStack, metrics: Metrics, health: Health
) -> Shared:
    """Starts what is shared. The journal's lock must be held: who this router is among the others
    lies beside it. Raises ``ConfigError`` for a password that cannot be read, ``OSError``.
    """
    own, clock = settings.limits, SystemClock()
    file = own.valkey_password_file
    try:
        password = read_secret(Path(file)) if file else Secret("")
    except SecretError as error:
        problem = Problem(where="limits.valkey_password_file", message=str(error))
        raise ConfigError([problem]) from None
    directory = Path(settings.router.journal_dir)
    member = Member.open(directory, SystemEntropy(), clock.monotonic())
    scripts = (*limit_scripts.ALL, COOL, IN_FORCE)
    link = Link(own.valkey_url, password, scripts, clock, own.valkey_deadline_s)
    limits = SharedLimits(link, member, own.valkey_namespace, clock)
    stack.push_async_callback(limits.close)
    await limits.start()
    subscription = Subscription(own.valkey_url, password)
    cooldowns = SharedCooldowns(link, subscription, health, own.valkey_namespace, clock)
    stack.push_async_callback(cooldowns.close)
    cooldowns.start()
    metrics.reading(
        "limits_shared",
        "1 while rate limits are counted in Valkey, 0 while this router keeps to its share.",
        lambda: limits.is_shared,
    )
    return Shared(limits=limits, cooldowns=cooldowns)
