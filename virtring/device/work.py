"""Jobs that one side gives the other (kicks, interrupts), run one after another."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from threading import Condition, Lock, get_ident

from virtring.errors import WrongState


class Work:
    """Runs what is posted, in the thread that came first, until nothing is left.

    A kick makes a device interrupt the driver, whose callback kicks again: called straight through
    that would be a recursion without end. Posted from inside a job, or while another thread runs
    the jobs, a job only waits for its turn. A key stands for at most one waiting job.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._ended = Condition(self._lock)
        self._waiting = 0
        self._turn = 0
        self._jobs: dict[Hashable, Callable[[], object]] = {}
        self._runner: int | None = None
        self._held: dict[int, int] = {}
        self._owner: int | None = None
        self._wake: Callable[[], object] = lambda: None

    @property
    def inside(self) -> bool:
        """Is this thread running one of the jobs right now?"""
        return self._runner == get_ident()

    def claim(self, wake: Callable[[], object] | None) -> None:
        """Only this thread runs jobs from now on; None ends that.

        When another thread posts something, it calls ``wake``, which must not wait or post; this
        thread then calls :meth:`run` soon.
        """
        with self._lock:
            self._owner = None if wake is None else get_ident()
            self._wake = wake or (lambda: None)

    def run(self) -> None:
        """Run what waits, if anything does; raises as :meth:`post`."""
        self._run()

    def post(self, key: Hashable, job: Callable[[], object]) -> None:
        """Run ``job`` soon: now, unless jobs are being run already.

        What a job raises does not keep the others from running; the first error is raised to the
        thread that ran them.
        """
        with self._lock:
            self._jobs[key] = job
        self._run()

    @contextmanager
    def later(self) -> Iterator[None]:
        """What this thread posts meanwhile is run at the end, by it or by whoever runs jobs.

        For a thread that holds a lock which jobs must not be run under.
        """
        me = get_ident()
        with self._lock:
            self._held[me] = self._held.get(me, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                self._held[me] -= 1
                if not self._held[me]:
                    del self._held[me]
            if self._jobs:
                self._run()

    def _run(self) -> None:
        me = get_ident()
        if self._runner == me or me in self._held:
            return
        if self._owner not in (None, me):
            with self._lock:
                self._wake()
            return
        failure: Exception | None = None
        key: Hashable = None
        job: Callable[[], object] | None = None
        try:
            while (found := self._take(me)) is not None:
                key, job = found
                try:
                    job()
                except Exception as error:
                    failure = failure or error
                job = None
        except BaseException:
            # An interrupt from the keyboard: this job and what waits is run with the next posted.
            with self._lock:
                if job is not None:
                    self._jobs.setdefault(key, job)
                if self._runner == me:
                    self._next(None)
            raise
        if failure is not None:
            raise failure

    def _take(self, me: int) -> tuple[Hashable, Callable[[], object]] | None:
        with self._lock:
            if self._runner not in (None, me):
                return None
            self._next(me if self._jobs else None)
            if not self._jobs:
                return None
            key = next(iter(self._jobs))
            return key, self._jobs.pop(key)

    def _next(self, runner: int | None) -> None:
        self._runner = runner
        self._turn += 1
        if self._waiting:
            self._ended.notify_all()

    def cancel(self, *keys: Hashable) -> None:
        """Forget jobs that wait: these, or all of them when none is named."""
        with self._lock:
            for key in keys or tuple(self._jobs):
                self._jobs.pop(key, None)

    def synchronize(self) -> None:
        """Wait until the job that runs now, in another thread, has ended.

        WrongState inside a job: it would wait for itself.
        """
        if self.inside:
            raise WrongState("a callback cannot wait for callbacks to end")
        with self._lock:
            turn = self._turn
            self._waiting += 1
            try:
                self._ended.wait_for(lambda: self._runner is None or self._turn != turn)
            finally:
                self._waiting -= 1
