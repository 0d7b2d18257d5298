//! From the text between two percent signs to an operator.

use super::{Fact, Head, MetadataOf, Moment, Operator, Point, Precision, TimeFormat};

/// What stands after a percent sign: the operator, a length limit, and what follows the closing
/// percent sign.
pub(super) fn parse_operator(rest: &str) -> Result<(Operator, Option<usize>, &str), String> {
    let word_end = rest
        .find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'))
        .unwrap_or(rest.len());
    let (word, mut tail) = rest.split_at(word_end);
    let mut parameter = None;
    if let Some(inner) = tail.strip_prefix('(') {
        let end = inner
            .find(')')
            .ok_or_else(|| format!("%{word}(: the parenthesis is not closed"))?;
        parameter = Some(&inner[..end]);
        tail = &inner[end + 1..];
    }

    let mut length = None;
    if let Some(inner) = tail.strip_prefix(':') {
        let end = inner
            .find('%')
            .ok_or_else(|| format!("%{word}: the operator is not closed"))?;
        length = Some(
            inner[..end]
                .parse()
                .map_err(|_| format!("%{word}: {:?} is not a length", &inner[..end]))?,
        );
        tail = &inner[end..];
    }

    let tail = tail
        .strip_prefix('%')
        .ok_or_else(|| format!("%{word}: the operator is not closed"))?;

    Ok((operator(word, parameter)?, length, tail))
}

fn operator(word: &str, parameter: Option<&str>) -> Result<Operator, String> {
    let needed = || parameter.ok_or_else(|| format!("%{word}% needs a parameter in parentheses"));
    let names = || {
        let name = needed()?.to_ascii_lowercase();
        Ok::<_, String>(match name.split_once('?') {
            Some((name, alternative)) => (name.into(), Some(alternative.into())),
            None => (name.into(), None),
        })
    };

    let header =
        |head| names().map(|(name, alternative)| Operator::Header(head, name, alternative));
    let metadata = |of| {
        let mut segments = needed()?.split(':').map(Box::from);
        let filter = segments.next().unwrap_or_default();
        Ok::<_, String>(Operator::Metadata(of, filter, segments.collect()))
    };

    let time = |moment| {
        let format = TimeFormat::parse(parameter.unwrap_or_default())
            .map_err(|reason| format!("%{word}%: {reason}"))?;
        Ok::<_, String>(Operator::Time(moment, format))
    };

    match word {
        "REQ" => header(Head::Request),
        "RESP" => header(Head::Response),
        "TRAILER" => header(Head::Trailer),
        "DYNAMIC_METADATA" => metadata(MetadataOf::Dynamic),
        "CLUSTER_METADATA" => metadata(MetadataOf::Cluster),
        "UPSTREAM_METADATA" => metadata(MetadataOf::UpstreamHost),
        "METADATA" => match needed()?.split_once(':') {
            Some((of, _)) => {
                let of_whom = match of {
                    "DYNAMIC" => MetadataOf::Dynamic,
                    "ROUTE" => MetadataOf::Route,
                    "VIRTUAL_HOST" => MetadataOf::VirtualHost,
                    "CLUSTER" => MetadataOf::Cluster,
                    "UPSTREAM_HOST" => MetadataOf::UpstreamHost,
                    "LISTENER" => MetadataOf::Listener,
                    "LISTENER_FILTER_CHAIN" => MetadataOf::ListenerFilterChain,
                    other => return Err(format!("%METADATA({other}:...)%: unknown kind")),
                };

                match metadata(of_whom)? {
                    Operator::Metadata(of, _, path) => {
                        let mut path = path.into_vec().into_iter();
                        let filter = path.next().unwrap_or_default();
                        Ok(Operator::Metadata(of, filter, path.collect()))
                    }
                    other => Ok(other),
                }
            }
            None => Err("%METADATA% needs a kind and a filter".to_owned()),
        },
        "FILTER_STATE" | "UPSTREAM_FILTER_STATE" => {
            let key = needed()?;
            let mut parts = key.splitn(3, ':');
            let key = parts.next().unwrap_or_default().into();
            let field = (parts.next() == Some("FIELD"))
                .then(|| parts.next())
                .flatten();
            Ok(Operator::FilterState(key, field.map(Into::into)))
        }
        "START_TIME" => time(Moment::Start),
        "EMIT_TIME" => time(Moment::EmitLog),
        "DOWNSTREAM_PEER_CERT_V_START" => time(Moment::DownstreamPeerCertStart),
        "DOWNSTREAM_PEER_CERT_V_END" => time(Moment::DownstreamPeerCertEnd),
        "UPSTREAM_PEER_CERT_V_START" => time(Moment::UpstreamPeerCertStart),
        "UPSTREAM_PEER_CERT_V_END" => time(Moment::UpstreamPeerCertEnd),
        "COMMON_DURATION" => {
            let mut parts = needed()?.split(':');
            let (Some(from), Some(to), precision, None) =
                (parts.next(), parts.next(), parts.next(), parts.next())
            else {
                return Err("%COMMON_DURATION% needs from:to or from:to:precision".to_owned());
            };

            let precision = match precision {
                None | Some("ms") => Precision::Milliseconds,
                Some("us") => Precision::Microseconds,
                Some("ns") => Precision::Nanoseconds,
                Some(other) => {
                    return Err(format!(
                        "%COMMON_DURATION(...:{other})%: ms, us and ns are known"
                    ));
                }
            };

            Ok(Operator::CommonDuration(
                Point::from_word(from),
                Point::from_word(to),
                precision,
            ))
        }
        "ENVIRONMENT" => Ok(Operator::Environment(needed()?.into())),
        "REQ_WITHOUT_QUERY" => {
            names().map(|(name, alternative)| Operator::WithoutQuery(name, alternative))
        }
        "PATH" => path(parameter.unwrap_or_default()),
        "GRPC_STATUS" => Ok(Operator::Fact(match parameter {
            None | Some("" | "CAMEL_STRING") => Fact::GrpcStatus,
            Some("SNAKE_STRING") => Fact::GrpcStatusSnake,
            Some("NUMBER") => Fact::GrpcStatusNumber,
            Some(other) => {
                return Err(format!(
                    "%GRPC_STATUS({other})%: CAMEL_STRING, SNAKE_STRING and NUMBER are known"
                ));
            }
        })),
        word => Fact::from_word(word).map(Operator::Fact).ok_or_else(|| {
            format!(
                "unknown operator %{}%",
                word.chars().take(64).collect::<String>()
            )
        }),
    }
}

/// `%PATH(X:Y)%`: X is WQ (with the query) or NQ, Y which path: ORIG, PATH, or the one and else the
/// other.
fn path(parameter: &str) -> Result<Operator, String> {
    let (query, which) = parameter.split_once(':').unwrap_or((parameter, ""));
    let (name, alternative): (Box<str>, Option<Box<str>>) = match which {
        "" | "ORIG_OR_PATH" => ("x-envoy-original-path".into(), Some(":path".into())),
        "ORIG" => ("x-envoy-original-path".into(), None),
        "PATH" => (":path".into(), None),
        other => {
            return Err(format!(
                "%PATH(...:{other})%: ORIG, PATH and ORIG_OR_PATH are known"
            ));
        }
    };

    match query {
        "" | "WQ" => Ok(Operator::Header(Head::Request, name, alternative)),
        "NQ" => Ok(Operator::WithoutQuery(name, alternative)),
        other => Err(format!("%PATH({other})%: WQ and NQ are known")),
    }
}
