"""What a ledger with budgets is, in as few words as possible: the reference of the property test.

Money is held on every account of a call or on none; a record releases its hold and costs what it
says, once; a lease that ends turns a hold into spending until a record says better.
"""

from dataclasses import dataclass, field

HELD, UNCERTAIN, POSTED, VOIDED, REFUSED = "held", "uncertain", "posted", "voided", "refused"


@dataclass
class Attempt:
    """What is known of an attempt: how it stands, what is held, and on which budgets."""

    state: str
    amount: int
    budgets: frozenset[str]


@dataclass
class Reference:
    """Budgets by name: subject and limit; attempts by number; what each budget has spent."""

    limits: dict[str, int] = field(default_factory=dict)
    subjects: dict[str, str] = field(default_factory=dict)
    spent: dict[str, int] = field(default_factory=dict)
    attempts: dict[int, Attempt] = field(default_factory=dict)
    recorded: set[int] = field(default_factory=set)

    def set_budget(self, subject: str, limit: int) -> None:
        """One budget for each subject."""
        self.limits[subject] = limit
        self.spent.setdefault(subject, 0)

    def matching(self, names: frozenset[str]) -> frozenset[str]:
        """The budgets that a call of these subjects counts on."""
        return names & self.limits.keys()

    def held(self, budget: str) -> int:
        """What is held on a budget."""
        open_ = (a for a in self.attempts.values() if a.state == HELD and budget in a.budgets)
        return sum(a.amount for a in open_)

    def left(self, budgets: frozenset[str]) -> int:
        """The room of the fullest budget."""
        return min(self.limits[b] - self.spent[b] - self.held(b) for b in budgets)

    def place(self, number: int, names: frozenset[str], amount: int, least: int) -> str:
        """How the attempt stands afterwards; empty when no budget applies."""
        budgets = self.matching(names)
        if not budgets:
            return ""
        if number not in self.attempts:
            taken = min(amount, self.left(budgets)) if amount else 0
            fits = taken >= (least or amount)
            state = HELD if fits else REFUSED
            self.attempts[number] = Attempt(state, taken if fits else 0, budgets)
        return self.attempts[number].state

    def raise_to(self, number: int, amount: int) -> None:
        """Holds more, if it fits."""
        attempt = self.attempts.get(number)
        if attempt is not None and attempt.state == HELD:
            more = amount - attempt.amount
            attempt.amount += more if 0 < more <= self.left(attempt.budgets) else 0

    def end(self, number: int, state: str) -> None:
        """Nothing of what the attempt holds or stands for remains."""
        attempt = self.attempts.setdefault(number, Attempt(state, 0, frozenset()))
        if attempt.state == UNCERTAIN:
            for budget in attempt.budgets:
                self.spent[budget] -= attempt.amount
        if attempt.state in (HELD, UNCERTAIN):
            attempt.state, attempt.amount = state, 0

    def record(self, number: int, names: frozenset[str], cost: int) -> None:
        """The attempt cost so much."""
        if number in self.recorded:
            return
        self.recorded.add(number)
        known = self.attempts.get(number)
        budgets = self.matching(names) | (known.budgets if known else frozenset())
        if known is not None:
            self.end(number, POSTED)
            known.state = POSTED
        for budget in budgets:
            self.spent[budget] += cost

    def expire(self, number: int) -> None:
        """The lease ran out."""
        attempt = self.attempts[number]
        if attempt.state == HELD:
            attempt.state = UNCERTAIN
            for budget in attempt.budgets:
                self.spent[budget] += attempt.amount
