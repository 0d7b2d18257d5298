//! What one exchange carries through its stages: the record, the response, and the configuration
//! that holds to its end.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use meltemi_filters::head::{Known, RequestHead, ResponseHead};
use meltemi_filters::http::Direction;
use meltemi_filters::{LocalReply, ResponseFlag};
use meltemi_proxy_config::http::HttpConnectionManager;
use meltemi_proxy_config::route::RouteDecision;

use crate::body::BodyIn;
use crate::counts::HttpCounts;
use crate::decorate;
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
    pub worker: &'a Rc<Worker>,
    pub conn: &'a Rc<Downstream>,
    pub view: &'a Rc<ChainView>,
    /// HTTP settings.
    pub http: &'a HttpConnectionManager,
    /// Counters of the connection manager.
    pub counts: &'a HttpCounts,
    /// The record.
    pub info: StreamInfo,
    /// The client.
    pub remote: SocketAddr,
    /// The client asked with HEAD, whatever filters have made of the method: it expects no body.
    pub is_head: bool,
    /// The response's head as the client gets it.
    pub response: ResponseHead,
    /// The response's trailers, if there were any.
    pub trailers: Option<http::HeaderMap>,
    /// The upstream is in the mesh.
    pub in_mesh: bool,
    /// The operation that the response tells the caller.
    pub operation: Option<Arc<str>>,
    /// A filter has answered in place of the response that it saw: its answer meets no filter.
    pub is_replied: bool,
}

impl<'a> Exchange<'a> {
    /// Begins now.
    pub fn new(
        worker: &'a Rc<Worker>,
        conn: &'a Rc<Downstream>,
        view: &'a Rc<ChainView>,
        http: &'a HttpConnectionManager,
        counts: &'a HttpCounts,
    ) -> Self {
        Self {
            info: StreamInfo::new(worker.random()),
            remote: conn.info.remote,
            is_head: false,
            response: ResponseHead::default(),
            trailers: None,
            in_mesh: false,
            operation: None,
            is_replied: false,
            worker,
            conn,
            view,
            http,
            counts,
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
            view: self.view,
            http: self.http,
            remote: self.remote,
            decision,
            cluster,
            in_mesh: self.in_mesh,
            counts: self.counts,
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

    /// Lets filters and the connection manager finish a response head. `body` is the upstream's, if
    /// it comes from there. A filter may answer in the response's place.
    pub async fn finish_head(
        &mut self,
        decision: Option<&RouteDecision<'_>>,
        request: &RequestHead,
        body: Option<&mut BodyIn<'_>>,
    ) -> Result<(), Box<LocalReply>> {
        let mut response = std::mem::take(&mut self.response);
        let cluster = self.info.cluster.clone();
        let inputs = self.filter_inputs(decision, cluster.as_deref());
        if !self.is_replied {
            let step = steps::response(inputs, request, &mut response, body, &mut self.info);
            if let Err(reply) = step.await {
                self.is_replied = true;
                self.response = response;
                return Err(reply);
            }
        }

        if self.http.passes_operations {
            let direction = self.view.listener.direction;
            decorate::response(direction, self.operation.as_deref(), response.fields_mut());
        }
        prepare::response(self.worker, self.http, request, &mut response);
        self.info.status = response.status;
        if let Some(status) = response.fields().known_str(Known::GrpcStatus) {
            self.info.grpc_status = status.parse().ok();
        }
        self.response = response;

        Ok(())
    }

    /// Sends the body of a response through the filters that want to see it.
    pub fn filter_response_body(&mut self, decision: &RouteDecision<'_>, body: &mut BodyIn<'_>) {
        let inputs = self.filter_inputs(Some(decision), None);
        steps::data::filtered(Direction::Response, inputs, body, &mut self.info);
    }
}
