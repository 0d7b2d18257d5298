use std::fmt::Write as _;
use std::time::Instant;
use meltemi_model::{BuildOptions, Snapshot, Tables};
#[test]
fn timing() {
    let mut text = String::new();
    for i in 0..2000 {
        let _ = write!(text, "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{i}, namespace: n{}}}\nspec: {{selector: {{app: s{i}}}, ports: [{{name: http, port: 80}}]}}\n", i % 20);
        let _ = write!(text, "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: s{i}, namespace: n{}}}\nspec: {{hosts: [s{i}], http: [{{route: [{{destination: {{host: s{i}}}}}]}}]}}\n", i % 20);
        for p in 0..4 {
            let _ = write!(text, "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: s{i}-{p}, namespace: n{}, labels: {{app: s{i}, version: v{p}}}}}\nspec: {{serviceAccountName: s}}\nstatus: {{podIP: 10.{}.{}.{p}}}\n", i % 20, i / 250, i % 250);
        }
    }
    let t = Instant::now();
    let objects: Vec<_> = super::objects(&text);
    eprintln!("parse {:?}", t.elapsed());
    let mut tables: Tables = objects.iter().cloned().collect();
    let t = Instant::now();
    let one = Snapshot::build(None, &tables, &BuildOptions::default());
    eprintln!("full {:?} {}", t.elapsed(), one.diagnostics.len());
    let again = super::objects("apiVersion: v1\nkind: Pod\nmetadata: {name: s5-0, namespace: n5, labels: {app: s5}}\nspec: {serviceAccountName: s}\nstatus: {podIP: 10.9.9.9}\n").remove(0);
    tables.apply(again);
    let t = Instant::now();
    let two = Snapshot::build(Some(&one.snapshot), &tables, &BuildOptions::default());
    eprintln!("pod {:?} {:?}", t.elapsed(), two.changes.endpoints);
    let t = Instant::now();
    two.snapshot.sidecar_scope("n1", &super::labels(&[]));
    eprintln!("scope {:?}", t.elapsed());
    let t = Instant::now();
    let n = two.snapshot.name_table("n1", &super::labels(&[])).len();
    eprintln!("names {:?} {n}", t.elapsed());
    let vs = super::objects("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: s5, namespace: n5}\nspec: {hosts: [s5], http: [{timeout: 1s, route: [{destination: {host: s5}}]}]}").remove(0);
    tables.apply(vs);
    let t = Instant::now();
    let _ = Snapshot::build(Some(&two.snapshot), &tables, &BuildOptions::default());
    eprintln!("vs {:?}", t.elapsed());
}
