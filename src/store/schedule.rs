//! Schedules: when each ticked last, and the event of a tick.

use jiff::Timestamp;

use super::{Error, RawJson, Store, sql};
use crate::config::ScheduleConfig;

/// When a schedule ticked last.
#[derive(Debug)]
pub struct Ticked {
    pub name: String,
    pub at: Timestamp,
    /// What time it is in PostgreSQL.
    pub now: Timestamp,
}

impl Store {
    /// Writes the schedules of the configuration, and forgets the others.
    pub async fn register_schedules(&self, schedules: &[ScheduleConfig]) -> Result<Vec<Ticked>, Error> {
        let json = |schedule: &ScheduleConfig| {
            serde_json::json!({
                "name": schedule.name,
                "cron": schedule.timetable.expression(),
                "timezone": schedule.timetable.zone_name(),
                "topic": schedule.topic,
            })
        };
        let schedules: serde_json::Value = schedules.iter().map(json).collect();
        let rows = self.query(sql!("register_schedules"), &[&schedules]).await?;
        let ticked =
            |row: &tokio_postgres::Row| Ticked { name: row.get("name"), at: row.get("ticked_at"), now: row.get("now") };
        Ok(rows.iter().map(ticked).collect())
    }

    /// Inserts the event of a tick; `None` when somebody else has.
    pub async fn tick(
        &self,
        schedule: &ScheduleConfig,
        tick: Timestamp,
        next: Option<Timestamp>,
    ) -> Result<Option<i64>, Error> {
        let (payload, name) = (RawJson(schedule.payload.clone()), &*schedule.name);
        let row =
            self.query_opt(sql!("tick"), &[&name, &tick, &next, &schedule.topic, &schedule.key, &payload]).await?;
        Ok(row.map(|row| row.get("id")))
    }
}
