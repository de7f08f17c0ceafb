//! `http`: a log that is there already, posted to a web service of this machine.

use std::time::Duration;

use super::super::Failure;
use super::clock;
use super::part::{Part, Role, sink};
use super::report::{Figure, Target};
use super::stand::Stand;

pub(super) async fn run(stand: &Stand, events: u32) -> Result<Vec<Figure>, Failure> {
    let requests = f64::from(events);
    let (mut service, address) = sink(stand).await?;
    let url = format!("http://{address}/");
    let mut client = Part::start(stand, &Role::PostFloor { url: url.clone(), requests: events })?;
    let took = client.says_when("took").await?;
    let floor = requests / clock::between(0, took).as_secs_f64();
    let floor_used = client.used()?;
    client.stop().await?;
    service.says_that("first").await?;
    service.stop().await?;

    stand.fresh().await?;
    stand.fill(events).await?;
    let (mut service, address) = sink(stand).await?;
    let daemon = Part::start(stand, &Role::Posts { url: format!("http://{address}/") })?;
    let first = service.says_when("first").await?;
    let last = stand.until_done(1).await?;
    let used = daemon.used()?;
    daemon.stop().await?;
    service.stop().await?;
    let took: Duration = clock::between(first, last);
    Ok(vec![
        Figure::new("requests/s", requests / took.as_secs_f64()).floor(floor).target(Target::RatioAtLeast(0.7)),
        Figure::new("daemon CPU ms/1,000 requests", used.cpu_seconds * 1e6 / requests)
            .floor(floor_used.cpu_seconds * 1e6 / requests),
    ])
}
