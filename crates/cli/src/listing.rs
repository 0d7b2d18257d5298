//! Which objects `get` shows, in which order, and the tables that show them.

use std::cmp::Ordering;

use anyhow::{Result, bail, ensure};
use meltemi_admin_api::ObjectView;
use serde_json::Value;

use crate::columns::{Live, columns, labels};
use crate::jsonpath::Path;
use crate::names::resource;
use crate::table::Table;

/// How tables look.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct TableStyle {
    pub(crate) namespaces: bool,
    pub(crate) wide: bool,
    pub(crate) labels: bool,
    pub(crate) no_headers: bool,
}

impl TableStyle {
    fn begin(self, headings: &[&str]) -> Table {
        if self.no_headers {
            Table::default()
        } else {
            Table::new(headings)
        }
    }
}

/// One table per kind. If there are several kinds, names are prefixed with their kind.
pub(crate) fn tables(items: &[ObjectView], live: &Live, style: TableStyle) -> String {
    let by_kind: Vec<&[ObjectView]> = items
        .chunk_by(|a, b| a.object.qualified_kind() == b.object.qualified_kind())
        .collect();
    let is_mixed = by_kind.len() > 1;

    let table_of = |items: &&[ObjectView]| {
        let mut table = Table::default();
        for (index, item) in items.iter().enumerate() {
            let object = &item.object;
            let name = match is_mixed {
                true => format!("{}/{}", resource(object), object.name),
                false => object.name.clone(),
            };

            let namespace = style
                .namespaces
                .then(|| ("NAMESPACE", object.namespace.clone()));
            let labels = style
                .labels
                .then(|| ("LABELS", labels(&item.value["metadata"]["labels"])));
            let columns = namespace
                .into_iter()
                .chain([("NAME", name)])
                .chain(columns(item, live, style.wide))
                .chain(labels);

            let (headings, cells): (Vec<&str>, Vec<String>) = columns.unzip();
            if index == 0 {
                table = style.begin(&headings);
            }
            table.row(cells);
        }

        table.render()
    };

    by_kind.iter().map(table_of).collect::<Vec<_>>().join("\n")
}

/// The table of `-o custom-columns`, for objects of all kinds together.
pub(crate) fn custom_table(
    items: &[ObjectView],
    columns: &[(String, Path)],
    style: TableStyle,
) -> Result<String> {
    let headings: Vec<&str> = columns.iter().map(|(heading, _)| &**heading).collect();
    let mut table = style.begin(&headings);
    for item in items {
        let cells = columns.iter().map(|(_, path)| {
            let found: Vec<_> = path.find(&item.value)?.into_iter().map(as_go).collect();
            Ok(match found.is_empty() {
                true => "<none>".to_owned(),
                false => found.join(","),
            })
        });
        table.row(cells.collect::<Result<_>>()?);
    }

    Ok(table.render())
}

/// A value as Go's `fmt.Sprint` prints it, which is how kubectl fills custom columns.
fn as_go(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("[{}]", list.iter().map(as_go).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let pair = |(key, value): (&String, &Value)| format!("{key}:{}", as_go(value));
            format!(
                "map[{}]",
                map.iter().map(pair).collect::<Vec<_>>().join(" ")
            )
        }
        other => other.to_string(),
    }
}

/// Sorts objects by a field. Objects without the field come first; kinds stay together.
///
/// # Errors
/// If no object has the field, as with kubectl.
pub(crate) fn sort(items: &mut Vec<ObjectView>, by: &Path) -> Result<()> {
    let mut keyed = Vec::new();
    for item in items.drain(..) {
        let key = by.find(&item.value)?.first().copied().cloned();
        keyed.push((key, item));
    }

    let is_known = keyed.is_empty() || keyed.iter().any(|(key, _)| key.is_some());
    keyed.sort_by(|(a, left), (b, right)| {
        let kinds = left
            .object
            .qualified_kind()
            .cmp(&right.object.qualified_kind());
        kinds.then_with(|| order(a.as_ref(), b.as_ref()))
    });
    items.extend(keyed.into_iter().map(|(_, item)| item));

    ensure!(is_known, "--sort-by: no object has this field");
    Ok(())
}

fn order(a: Option<&Value>, b: Option<&Value>) -> Ordering {
    match (a, b) {
        (Some(Value::Number(a)), Some(Value::Number(b))) => {
            let (a, b) = (a.as_f64(), b.as_f64());
            a.partial_cmp(&b).unwrap_or(Ordering::Equal)
        }
        (Some(Value::String(a)), Some(Value::String(b))) => natural(a, b),
        (Some(a), Some(b)) => a.to_string().cmp(&b.to_string()),
        (a, b) => a.is_some().cmp(&b.is_some()),
    }
}

/// The order in which `v9` stands before `v10`.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a.as_bytes(), b.as_bytes());
    while let ([x, ..], [y, ..]) = (left, right) {
        let digits = |text: &[u8]| text.iter().take_while(|c| c.is_ascii_digit()).count();
        let (m, n) = (digits(left), digits(right));
        if m == 0 || n == 0 {
            if x != y {
                return x.cmp(y);
            }
            (left, right) = (&left[1..], &right[1..]);
            continue;
        }

        // Without leading zeros the longer number is the greater one.
        let number = |text: &[u8]| text[text.iter().take_while(|c| **c == b'0').count()..].to_vec();
        let (x, y) = (number(&left[..m]), number(&right[..n]));
        let ordering = x.len().cmp(&y.len()).then_with(|| x.cmp(&y));
        if ordering.is_ne() {
            return ordering;
        }
        (left, right) = (&left[m..], &right[n..]);
    }

    left.len().cmp(&right.len()).then_with(|| a.cmp(b))
}

/// A field selector: (path, value, whether they must be equal).
#[derive(Debug)]
pub(crate) struct FieldFilter(Vec<(Path, String, bool)>);

impl FieldFilter {
    /// Parses `metadata.name=a,spec.host!=b`. Unlike a cluster, which knows two or three fields of
    /// each kind, every field can be selected by.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let term = |term: &str| {
            let (path, value, must_equal) = if let Some((path, value)) = term.split_once("!=") {
                (path, value, false)
            } else if let Some((path, value)) =
                term.split_once("==").or_else(|| term.split_once('='))
            {
                (path, value, true)
            } else {
                bail!("--field-selector {term:?}: expected FIELD=VALUE or FIELD!=VALUE");
            };
            Ok((path.trim().parse()?, value.trim().to_owned(), must_equal))
        };

        let terms = text.split(',').map(term);
        Ok(Self(terms.collect::<Result<_>>()?))
    }

    /// Whether the object satisfies every term. A missing field is the empty string.
    pub(crate) fn matches(&self, value: &Value) -> Result<bool> {
        for (path, wanted, must_equal) in &self.0 {
            let found = path
                .find(value)?
                .first()
                .map_or_else(String::new, |found| as_go(found));
            if (found == *wanted) != *must_equal {
                return Ok(false);
            }
        }

        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::View;
    use meltemi_types::ObjectRef;
    use serde_json::json;

    fn item(kind: &str, name: &str) -> ObjectView {
        let value = json!({
            "metadata": {"name": name, "creationTimestamp": "2999-01-01T00:00:00Z"},
            "spec": {"host": "x"},
        });
        ObjectView {
            object: ObjectRef::new(kind, "shop", name),
            value,
            ..ObjectView::default()
        }
    }

    fn shown(items: &[ObjectView], style: TableStyle) -> String {
        tables(items, &Live::default(), style)
    }

    #[test]
    fn two_kinds_of_one_word_are_told_apart() {
        let mut foreign = item("Gateway", "web");
        foreign.object = foreign.object.in_group("gateway.networking.k8s.io");
        foreign.value["spec"] = json!({"gatewayClassName": "istio"});

        assert_eq!(
            shown(&[item("Gateway", "web"), foreign], TableStyle::default()),
            "NAME          SELECTOR   PORTS   HOSTS   AGE\ngateway/web   <none>     -       []      0s\n\n\
             NAME                                    AGE\ngateway.gateway.networking.k8s.io/web   0s\n"
        );
    }

    #[test]
    fn each_kind_has_a_table_of_its_own() {
        let items = [
            item("DestinationRule", "a"),
            item("DestinationRule", "bb"),
            item("Sidecar", "c"),
        ];

        assert_eq!(
            shown(&items[..2], TableStyle::default()),
            "NAME   HOST   AGE\na      x      0s\nbb     x      0s\n"
        );

        let style = TableStyle {
            namespaces: true,
            ..TableStyle::default()
        };
        assert_eq!(
            shown(&items[1..], style),
            "NAMESPACE   NAME                 HOST   AGE\nshop        destinationrule/bb   x      0s\n\n\
             NAMESPACE   NAME        AGE\nshop        sidecar/c   0s\n"
        );
    }

    #[test]
    fn tables_show_labels_and_leave_headings_out() {
        let mut items = [item("DestinationRule", "a"), item("DestinationRule", "b")];
        items[0].value["metadata"]["labels"] = json!({"version": "v1", "app": "x"});

        let style = TableStyle {
            labels: true,
            no_headers: true,
            ..TableStyle::default()
        };
        assert_eq!(
            shown(&items, style),
            "a   x   0s   app=x,version=v1\nb   x   0s   <none>\n"
        );
    }

    #[test]
    fn custom_columns_print_values_as_kubectl_does() {
        let mut one = item("Service", "a");
        one.value["spec"] =
            json!({"ports": [{"port": 80}, {"port": 81}], "selector": {"app": "x"}});
        let format = "custom-columns=NAME:.metadata.name,PORTS:{.spec.ports[*].port},ALL:spec.ports,FOR:.spec.selector,NO:.x";
        let View::Columns(columns) = View::parse(format).unwrap() else {
            panic!("{format} has no columns");
        };

        assert_eq!(
            custom_table(&[one], &columns, TableStyle::default()).unwrap(),
            "NAME   PORTS   ALL                           FOR          NO\n\
             a      80,81   [map[port:80] map[port:81]]   map[app:x]   <none>\n"
        );
    }

    #[test]
    fn objects_are_sorted_naturally_and_by_number() {
        let sorted = |fields: Value, by: &str| {
            let values = fields.as_array().unwrap();
            let mut items: Vec<_> = (0..values.len())
                .map(|at| {
                    let mut one = item("Service", &at.to_string());
                    one.value["spec"] = values[at].clone();
                    one
                })
                .collect();
            sort(&mut items, &by.parse().unwrap())?;
            let names: Vec<_> = items.into_iter().map(|one| one.object.name).collect();
            anyhow::Ok(names.join(" "))
        };

        let versions = json!([{"v": "v10"}, {"v": "v9"}, {}, {"v": "v09b"}]);
        assert_eq!(sorted(versions, ".spec.v").unwrap(), "2 1 3 0");
        let numbers = json!([{"n": 10}, {"n": 9}]);
        assert_eq!(sorted(numbers.clone(), "{.spec.n}").unwrap(), "1 0");
        assert!(sorted(numbers, ".spec.typo").is_err());
    }

    #[test]
    fn fields_select_objects() {
        let one = item("DestinationRule", "a");
        let matches = |text: &str| {
            FieldFilter::parse(text)
                .unwrap()
                .matches(&one.value)
                .unwrap()
        };
        assert!(matches("metadata.name=a,spec.host==x,spec.port="));
        assert!(!matches("metadata.name!=a") && !matches("spec.host=y"));
        assert!(FieldFilter::parse("metadata.name").is_err());
    }
}
