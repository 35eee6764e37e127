from small_worlds import one_thread, two_threads  # noqa: F401
