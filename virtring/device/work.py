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
        self._idle = Condition(self._lock)
        self._jobs: dict[Hashable, Callable[[], object]] = {}
        self._runner: int | None = None

    @property
    def inside(self) -> bool:
        """Is this thread running one of the jobs right now?"""
        return self._runner == get_ident()

    def post(self, key: Hashable, job: Callable[[], object]) -> None:
        """Run ``job`` soon: now, unless jobs are being run already.

        What a job raises does not keep the others from running; the first error is raised to the
        thread that ran them.
        """
        with self._lock:
            self._jobs[key] = job
            if self._runner is not None:
                return
            self._runner = get_ident()
        self._run()

    @contextmanager
    def later(self) -> Iterator[None]:
        """What is posted inside waits for the end of the block: for a lock that is held in it."""
        with self._lock:
            mine = self._runner is None
            if mine:
                self._runner = get_ident()
        try:
            yield
        finally:
            if mine:
                self._run()

    def _run(self) -> None:
        failure: Exception | None = None
        try:
            while (job := self._take()) is not None:
                try:
                    job()
                except Exception as error:
                    failure = failure or error
        except BaseException:
            # An interrupt from the keyboard: what waits is run with the next job posted.
            with self._lock:
                self._end()
            raise
        if failure is not None:
            raise failure

    def _take(self) -> Callable[[], object] | None:
        with self._lock:
            if not self._jobs:
                self._end()
                return None
            return self._jobs.pop(next(iter(self._jobs)))

    def _end(self) -> None:
        self._runner = None
        self._idle.notify_all()

    def cancel(self, key: Hashable) -> None:
        """Forget a job that waits."""
        with self._lock:
            self._jobs.pop(key, None)

    def synchronize(self) -> None:
        """Wait until no job runs in another thread; WrongState inside a job (it would hang)."""
        if self.inside:
            raise WrongState("a callback cannot wait for callbacks to end")
        with self._lock:
            self._idle.wait_for(lambda: self._runner is None)
