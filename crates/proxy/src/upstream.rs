//! Upstream clusters at run time: health, pools, connecting.
//!
//! [`cluster`] chooses; [`live`] is shared by all workers, with breakers and [`outlier`] detection;
//! [`pool`] belongs to one worker, [`places`] counts its connections and has requests wait for
//! them; [`connect`] opens connections; [`acquire`] gets one for a request, which [`connecting`]
//! makes if there is none. [`carrier`] is the connection or stream of one request, [`response`] its
//! way back; [`fetch`] sends requests of the proxy's own.

pub mod acquire;
pub mod carrier;
pub mod cluster;
pub mod connect;
pub mod connecting;
pub mod fetch;
pub mod live;
pub mod outlier;
pub mod places;
pub mod pool;
pub mod response;
