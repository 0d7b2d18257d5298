//! What one exchange carries through its stages: the record, the response, and the configuration
//! that holds to its end.

use std::net::SocketAddr;
use std::rc::Rc;

use meltemi_filters::ResponseFlag;
use meltemi_filters::head::{Known, RequestHead, ResponseHead};
use meltemi_proxy_config::http::HttpConnectionManager;
use meltemi_proxy_config::route::RouteDecision;

use crate::downstream::{ChainView, Downstream};
use crate::prepare;
use crate::record::StreamInfo;
use crate::steps::{self, FilterInputs};
use crate::worker::Worker;

/// How an exchange left the downstream connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// A whole response was sent.
    Whole,
    /// A response could not be finished; the connection must not look as if it had been.
    Broken,
    /// The downstream left before its response was whole.
    Gone,
    /// The connection spoke another protocol and is finished.
    Switched,
}

/// What one exchange carries through its stages.
#[derive(Debug)]
pub struct Exchange<'a> {
    /// The worker.
    pub worker: &'a Rc<Worker>,
    /// The connection.
    pub conn: &'a Rc<Downstream>,
    /// Configuration.
    pub view: &'a ChainView,
    /// HTTP settings.
    pub http: &'a HttpConnectionManager,
    /// The record.
    pub info: StreamInfo,
    /// The client.
    pub remote: SocketAddr,
    /// The response's head, as it was sent.
    pub response: ResponseHead,
    /// The response's trailers, if there were any.
    pub trailers: Option<http::HeaderMap>,
    /// The upstream is in the mesh.
    pub in_mesh: bool,
}

impl<'a> Exchange<'a> {
    /// Begins now.
    pub fn new(
        worker: &'a Rc<Worker>,
        conn: &'a Rc<Downstream>,
        view: &'a ChainView,
        http: &'a HttpConnectionManager,
    ) -> Self {
        Self {
            info: StreamInfo::new(worker.random()),
            remote: conn.info.remote,
            response: ResponseHead::default(),
            trailers: None,
            in_mesh: false,
            worker,
            conn,
            view,
            http,
        }
    }

    /// What filters see beside the heads.
    pub fn filter_inputs<'b>(
        &self,
        decision: Option<&'b RouteDecision<'b>>,
        cluster: Option<&'b str>,
    ) -> FilterInputs<'b>
    where
        'a: 'b,
    {
        FilterInputs {
            worker: self.worker,
            conn: self.conn,
            remote: self.remote,
            decision,
            cluster,
            in_mesh: self.in_mesh,
            counts: self.view.counts.as_deref(),
        }
    }

    /// Notes that the client left before it was answered.
    pub fn gone(&mut self) -> Ended {
        self.info.end(
            ResponseFlag::DownstreamConnectionTermination,
            "downstream_remote_disconnect",
            None,
        );
        Ended::Gone
    }

    /// Lets filters and the connection manager finish a response head.
    pub fn finish_head(
        &mut self,
        decision: Option<&RouteDecision<'_>>,
        request: &RequestHead,
        is_local: bool,
    ) {
        let mut response = std::mem::take(&mut self.response);
        let cluster = self.info.cluster.clone();
        let inputs = self.filter_inputs(decision, cluster.as_deref());
        steps::response(
            &self.http.filters,
            inputs,
            request,
            &mut response,
            &mut self.info,
            is_local,
        );

        prepare::response(self.worker, self.http, request, &mut response);
        self.info.status = response.status;
        if let Some(status) = response.fields().known_str(Known::GrpcStatus) {
            self.info.grpc_status = status.parse().ok();
        }
        self.response = response;
    }
}
