//! The one tokio runtime behind the blocking interface of the lab.

use std::sync::OnceLock;

use tokio::runtime::{Builder, Runtime};

/// Serves every namespace: a socket stays in the namespace that it was made in, whichever thread polls it.
pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("lab-io")
            .enable_all()
            .build()
            .expect("a tokio runtime needs two threads and an epoll descriptor")
    })
}

/// Runs a future to its end on the calling thread, which must not be one of the runtime's own.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    runtime().block_on(future)
}
