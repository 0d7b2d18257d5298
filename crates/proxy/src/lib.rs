//! TODO
pub mod body;
pub mod http1 { pub mod body; pub mod client; pub mod codec; pub mod input; }
pub mod http2 { pub mod client; pub mod heads; }
pub mod io;
pub mod timer;
pub mod upstream { pub mod live; pub mod pool; }
