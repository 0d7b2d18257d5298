//! Upstream clusters at run time: who is healthy, what is open, how to connect.
//!
//! [`cluster`] chooses; [`live`] is shared by all workers, with breakers and [`outlier`] detection; [`pool`] belongs to one worker; [`tls`] makes rustls
//! configurations of compiled terms and current secrets; [`connect`] opens connections.

pub mod acquire;
pub mod cluster;
pub mod connect;
pub mod live;
pub mod outlier;
pub mod pool;
pub mod tls;
