//! Envoy's response flags: short codes for why a request or connection ended.

use std::fmt;

macro_rules! flags {
    ($($(#[doc = $doc:literal])* $name:ident = $short:literal, $long:literal;)*) => {
        /// One reason, with Envoy's short and long names. Source: Envoy `stream_info/utility.cc`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum ResponseFlag {
            $($(#[doc = $doc])* $name,)*
        }

        impl ResponseFlag {
            /// Every flag.
            pub const ALL: &'static [ResponseFlag] = &[$(ResponseFlag::$name,)*];

            /// As `%RESPONSE_FLAGS%` prints it.
            pub const fn short(self) -> &'static str {
                match self { $(ResponseFlag::$name => $short,)* }
            }

            /// As `%RESPONSE_FLAGS_LONG%` prints it.
            pub const fn long(self) -> &'static str {
                match self { $(ResponseFlag::$name => $long,)* }
            }

            /// Finds the flag with a short name.
            pub fn from_short(name: &str) -> Option<Self> {
                match name { $($short => Some(ResponseFlag::$name),)* _ => None }
            }
        }
    };
}

flags! {
    /// The local service failed its health check.
    FailedLocalHealthCheck = "LH", "FailedLocalHealthCheck";
    /// No healthy endpoint in the upstream cluster.
    NoHealthyUpstream = "UH", "NoHealthyUpstream";
    /// The request or one of its attempts timed out.
    UpstreamRequestTimeout = "UT", "UpstreamRequestTimeout";
    /// The proxy reset the stream.
    LocalReset = "LR", "LocalReset";
    /// The upstream reset the stream.
    UpstreamRemoteReset = "UR", "UpstreamRemoteReset";
    /// No connection to the upstream could be made.
    UpstreamConnectionFailure = "UF", "UpstreamConnectionFailure";
    /// The upstream closed the connection.
    UpstreamConnectionTermination = "UC", "UpstreamConnectionTermination";
    /// A circuit breaker is open.
    UpstreamOverflow = "UO", "UpstreamOverflow";
    /// No route or no filter chain matches.
    NoRouteFound = "NR", "NoRouteFound";
    /// A fault filter delayed the request.
    DelayInjected = "DI", "DelayInjected";
    /// A fault filter aborted the request.
    FaultInjected = "FI", "FaultInjected";
    /// A local or global rate limit refused the request.
    RateLimited = "RL", "RateLimited";
    /// Authorization by an external service denied the request.
    UnauthorizedExternalService = "UAEX", "UnauthorizedExternalService";
    /// The rate limit service failed.
    RateLimitServiceError = "RLSE", "RateLimitServiceError";
    /// The downstream closed the connection.
    DownstreamConnectionTermination = "DC", "DownstreamConnectionTermination";
    /// The request failed after its last allowed attempt.
    UpstreamRetryLimitExceeded = "URX", "UpstreamRetryLimitExceeded";
    /// The stream was idle for too long.
    StreamIdleTimeout = "SI", "StreamIdleTimeout";
    /// A header that must hold a valid value does not.
    InvalidEnvoyRequestHeaders = "IH", "InvalidEnvoyRequestHeaders";
    /// The downstream broke the protocol.
    DownstreamProtocolError = "DPE", "DownstreamProtocolError";
    /// The stream to the upstream lived as long as it may.
    UpstreamMaxStreamDurationReached = "UMSDR", "UpstreamMaxStreamDurationReached";
    /// The response came from a cache.
    ResponseFromCacheFilter = "RFCF", "ResponseFromCacheFilter";
    /// No filter configuration was found.
    NoFilterConfigFound = "NFCF", "NoFilterConfigFound";
    /// The connection lived as long as it may.
    DurationTimeout = "DT", "DurationTimeout";
    /// The upstream broke the protocol.
    UpstreamProtocolError = "UPE", "UpstreamProtocolError";
    /// The named cluster does not exist.
    NoClusterFound = "NC", "NoClusterFound";
    /// The overload manager ended the request.
    OverloadManagerTerminated = "OM", "OverloadManagerTerminated";
    /// The upstream's name could not be resolved.
    DnsResolutionFailed = "DF", "DnsResolutionFailed";
    /// Load was dropped as the endpoints' policy says.
    DropOverload = "DO", "DropOverload";
    /// The downstream reset the stream.
    DownstreamRemoteReset = "DR", "DownstreamRemoteReset";
    /// Load was dropped without a configured policy.
    UnconditionalDropOverload = "UDO", "UnconditionalDropOverload";
}

/// A set of [`ResponseFlag`]s, in the order in which they were set, as Envoy prints them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ResponseFlags {
    set: u64,
    /// The places in [`ResponseFlag::ALL`] counted from 1, five bits each, the first flag lowest.
    order: u64,
}

/// The bits of one place, and how many places there are. No request gathers as many flags; one that
/// does is printed without the last.
const PLACE: u32 = 5;
const PLACES: u32 = 64 / PLACE;
const _: () = assert!(ResponseFlag::ALL.len() < 1 << PLACE);

impl ResponseFlags {
    /// Adds a flag.
    pub fn insert(&mut self, flag: ResponseFlag) {
        if !self.contains(flag) && self.set.count_ones() < PLACES {
            self.order |= (flag as u64 + 1) << (PLACE * self.set.count_ones());
        }
        self.set |= 1 << flag as u8;
    }

    /// Whether the flag is set.
    pub fn contains(self, flag: ResponseFlag) -> bool {
        self.set & (1 << flag as u8) != 0
    }

    /// Whether no flag is set.
    pub fn is_empty(self) -> bool {
        self.set == 0
    }

    /// Whether a flag is in both sets.
    pub fn intersects(self, other: Self) -> bool {
        self.set & other.set != 0
    }

    /// The flags that are set, the first one first.
    pub fn iter(self) -> impl Iterator<Item = ResponseFlag> {
        (0..PLACES)
            .map(move |at| self.order >> (PLACE * at) & ((1 << PLACE) - 1))
            .map_while(|place| {
                let place = usize::try_from(place).ok()?.checked_sub(1)?;
                ResponseFlag::ALL.get(place).copied()
            })
    }
}

impl FromIterator<ResponseFlag> for ResponseFlags {
    fn from_iter<I: IntoIterator<Item = ResponseFlag>>(flags: I) -> Self {
        let mut set = Self::default();
        flags.into_iter().for_each(|flag| set.insert(flag));
        set
    }
}

impl fmt::Display for ResponseFlags {
    /// As `%RESPONSE_FLAGS%`: comma-separated short names, `-` if there is none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("-");
        }
        for (index, flag) in self.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            f.write_str(flag.short())?;
        }

        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_print_as_envoy_does() {
        let mut flags = ResponseFlags::default();
        assert_eq!(flags.to_string(), "-");
        flags.insert(ResponseFlag::UpstreamRetryLimitExceeded);
        flags.insert(ResponseFlag::UpstreamConnectionFailure);
        flags.insert(ResponseFlag::UpstreamRetryLimitExceeded);
        assert_eq!(flags.to_string(), "URX,UF");

        let all: ResponseFlags = ResponseFlag::ALL.iter().rev().copied().collect();
        assert!(ResponseFlag::ALL.iter().all(|flag| all.contains(*flag)));
        let shown: Vec<_> = all.iter().collect();
        let last = ResponseFlag::ALL.iter().rev().copied();
        assert_eq!(shown, last.take(shown.len()).collect::<Vec<_>>());

        for flag in ResponseFlag::ALL {
            assert_eq!(ResponseFlag::from_short(flag.short()), Some(*flag));
        }
    }
}
