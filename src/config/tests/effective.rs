//! What a configuration means with every default filled in, as TOML.

use super::*;

#[expect(clippy::too_many_lines, reason = "it is one text")]
#[test]
fn the_effective_configuration_is_toml_with_every_default() {
    expect![[r#"
        [database]
        url = "***"

        [daemon]
        poll_interval = "5s"
        drain_timeout = "30s"
        dedup_window = "24h"
        once_window = "30d"
        retention = "7d"
        pool_size = 8
        listen = "127.0.0.1:7474"
        callback_url = "https://hooks.example.com/outboxd"

        [traces]
        endpoint = "http://127.0.0.1:4318/"
        headers = { Authorization = "***" }
        sample = 1.0

        [handler.account]
        topics = ["account.*"]
        sql = "app.apply_to_account"
        concurrency = 8
        rate = "50/s"
        timeout = "30s"
        max_timeout = "30s"
        retry = { max_attempts = 12, backoff = ["1s", "5s", "1m"], max = "1h", concurrency = 2, rate = 50 }
        callback = false
        ordered = true
        on_dead_key = "block"
        record = "late"
        breaker = "on"
        on_done = "account.applied"
        on_dead = "account.dead"
        start = "now"

        [handler.hooks]
        topics = ["invoice.*"]
        http = { url = "{payload.endpoint}", allow = ["10.20.0.0/16"], secret = ["***", "***"] }
        concurrency = 8
        concurrency_per_key = 2
        timeout = "30s"
        max_timeout = "30s"
        retry = { max_attempts = 12, backoff = "exponential", base = "1s", max = "1h" }
        callback = false
        ordered = false
        record = "late"
        breaker = "off"
        start = "now"

        [handler.ledger]
        topics = ["payment.*"]
        sql = "app.apply_payment"
        concurrency = 8
        timeout = "30s"
        max_timeout = "30s"
        retry = { max_attempts = 12, backoff = "exponential", base = "1s", max = "1h" }
        callback = false
        ordered = false
        record = "late"
        breaker = "on"
        start = "now"

        [handler.payment]
        topics = ["order.placed"]
        http = { url = "http://127.0.0.1:8000/payments" }
        concurrency = 8
        timeout = "30s"
        max_timeout = "30s"
        retry = { max_attempts = 12, backoff = "exponential", base = "1s", max = "1h" }
        poll = { base = "5s", max = "5m", timeout = "24h" }
        callback = true
        ordered = false
        record = "start"
        breaker = "on"
        start = "now"

        [handler.search]
        topics = ["product.changed"]
        http = { url = "http://127.0.0.1:8000/index" }
        concurrency = 8
        timeout = "30s"
        max_timeout = "30s"
        retry = { max_attempts = 12, backoff = "exponential", base = "1s", max = "1h" }
        callback = false
        ordered = true
        on_dead_key = "skip"
        coalesce = "key"
        batch = { max = 100, wait = "1s" }
        max_backlog = { events = 100000, then = "refuse" }
        record = "late"
        breaker = "on"
        start = "now"

        [handler.thumbnail]
        topics = ["file.uploaded"]
        command = ["/usr/local/bin/thumbnail", "--stdin"]
        env = { S3_TOKEN = "***" }
        concurrency = 8
        timeout = "30s"
        max_timeout = "30s"
        retry = { max_attempts = 12, backoff = "exponential", base = "1s", max = "1h" }
        callback = false
        ordered = false
        record = "late"
        breaker = "on"
        start = "now"

        [handler.welcome_email]
        topics = ["user.registered"]
        http = { url = "http://127.0.0.1:8000/hooks", secret = "***", headers = { Authorization = "***" } }
        concurrency = 8
        timeout = "30s"
        max_timeout = "30s"
        retry = { max_attempts = 12, backoff = "exponential", base = "1s", max = "1h" }
        callback = false
        ordered = false
        record = "late"
        breaker = "on"
        start = "now"

        [flow.order]
        on = ["order.placed"]
        ordered = false
        on_dead_step = "compensate"
        on_done = "order.done"
        on_dead = "order.failed"
        start = "now"

        [flow.order.step.parcel]
        retired = true
        command = ["/usr/local/bin/book-parcel"]
        concurrency = 8
        timeout = "30s"
        max_timeout = "30s"
        retry = { max_attempts = 12, backoff = "exponential", base = "1s", max = "1h" }
        callback = false
        record = "late"
        breaker = "on"

        [flow.order.step.payment]
        after = ["stock"]
        http = { url = "http://127.0.0.1:8000/charge" }
        concurrency = 8
        timeout = "30s"
        max_timeout = "30s"
        retry = { max_attempts = 12, backoff = "exponential", base = "1s", max = "1h" }
        callback = true
        record = "start"
        breaker = "on"

        [flow.order.step.stock]
        sql = "shop.lock_stock"
        concurrency = 8
        timeout = "30s"
        max_timeout = "30s"
        retry = { max_attempts = 12, backoff = "exponential", base = "1s", max = "1h" }
        callback = false
        record = "late"
        breaker = "on"

        [flow.order.step.stock.compensate]
        when = "done"
        sql = "shop.unlock_stock"
        concurrency = 8
        timeout = "30s"
        max_timeout = "30s"
        retry = { max_attempts = 50, backoff = "exponential", base = "1s", max = "1h" }
        callback = false
        record = "late"
        breaker = "on"

        [schedule.nightly]
        cron = "30 3 * * *"
        timezone = "Europe/Berlin"
        topic = "report.wanted"
        payload = { kind = "daily", pages = [1, 2] }
        key = "report"
        catch_up = 1

        [alert.dead_mail]
        when = "dead"
        handler = "welcome_email"
        above = 0
        for = "1m"
    "#]]
    .assert_eq(&parse(&uncommented()).unwrap().to_toml());
}
