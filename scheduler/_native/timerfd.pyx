"""A timer file descriptor on the monotonic clock, armed with absolute times.

uvloop's own timers round to whole milliseconds; a timerfd read by the loop is late by some tens of
microseconds.
"""

import os

from libc.errno cimport EAGAIN, errno
from libc.stdint cimport int64_t, uint64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport read

cdef extern from "<sys/timerfd.h>" nogil:
    cdef struct itimerspec:
        timespec it_interval
        timespec it_value
    int TFD_NONBLOCK
    int TFD_CLOEXEC
    int TFD_TIMER_ABSTIME
    int timerfd_create(int clock, int flags)
    int timerfd_settime(int fd, int flags, const itimerspec* new_value, itimerspec* old_value)

NEVER = 0x7FFFFFFFFFFFFFFF


def monotonic_ns():
    """Nanoseconds on CLOCK_MONOTONIC, the clock of every `now` in the core."""
    cdef timespec at
    clock_gettime(CLOCK_MONOTONIC, &at)
    return <int64_t>at.tv_sec * 1_000_000_000 + at.tv_nsec


cdef class TimerFd:
    """Owns the descriptor. `fileno()` becomes readable when the armed moment has come."""

    cdef int fd
    cdef int64_t armed_ns

    def __cinit__(self):
        self.fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        self.armed_ns = NEVER
        if self.fd < 0:
            raise OSError(errno, os.strerror(errno))

    def __dealloc__(self):
        if self.fd >= 0:
            os.close(self.fd)

    def fileno(self):
        return self.fd

    def arm_ns(self, int64_t at_ns):
        """Wakes at `at_ns`; an earlier armed wake stays: it fires and the owner asks again."""
        cdef itimerspec value
        if at_ns >= self.armed_ns:
            return
        value.it_interval.tv_sec = 0
        value.it_interval.tv_nsec = 0
        # A zero time would disarm.
        at_ns = max(at_ns, 1)
        value.it_value.tv_sec = at_ns // 1_000_000_000
        value.it_value.tv_nsec = at_ns % 1_000_000_000
        if timerfd_settime(self.fd, TFD_TIMER_ABSTIME, &value, NULL) != 0:
            raise OSError(errno, os.strerror(errno))
        self.armed_ns = at_ns

    def fired(self):
        """Reads the expiry away; afterwards nothing is armed."""
        cdef uint64_t expirations = 0
        if read(self.fd, &expirations, sizeof(expirations)) < 0 and errno != EAGAIN:
            raise OSError(errno, os.strerror(errno))
        self.armed_ns = NEVER
