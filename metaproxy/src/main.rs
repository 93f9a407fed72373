//! The `metaproxy` binary: parses the command line, validates it, and runs the command.

use std::process::ExitCode;

use anyhow::Context as _;
use metaproxy::cli::{
    Cli, Command, DoctorArgs, EX_USAGE, LogFormat, LogLevel, LoggingArgs, Switch, UsageError,
};
use metaproxy::doctor::Examination;
use metaproxy::telemetry::audit::AUDIT_TARGET;
use metaproxy::{agent, commands, error_chain, guard, memory};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = match Cli::from_words(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::from(EX_USAGE)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    match cli.command {
        Command::Run(args) => match args.settings() {
            Ok(settings) => run(args.logging, args.audit, agent::run(settings)),
            Err(error) => bad_usage("run", &error),
        },
        Command::Guard(args) => match args.settings() {
            Ok(settings) => run(args.logging, Switch::Off, guard::run(settings)),
            Err(error) => bad_usage("guard", &error),
        },
        Command::Explain(args) => match commands::explain::run(&args) {
            Ok(code) => code,
            Err(error) => bad_usage("explain", &error),
        },
        Command::Doctor(args) => match args.examination() {
            Ok(examination) => doctor(&args, &examination),
            Err(error) => bad_usage("doctor", &error),
        },
        Command::Status(args) => commands::status::run(&args),
        Command::Migrate(args) => commands::migrate::run(&args),
        Command::Completions(args) => commands::completions::run(args.shell),
        Command::Man => commands::man::run(),
        Command::Probe(args) => commands::probe::run(&args),
    }
}

fn bad_usage(command: &str, error: &UsageError) -> ExitCode {
    eprintln!("error: {error}\n\nFor more information, try 'metaproxy {command} --help'.");
    ExitCode::from(EX_USAGE)
}

fn doctor(args: &DoctorArgs, examination: &Examination) -> ExitCode {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(commands::doctor::run(args, examination)),
        Err(error) => {
            eprintln!("error: cannot start the asynchronous runtime: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run<E: std::error::Error + Send + Sync + 'static>(
    logging: LoggingArgs,
    audit: Switch,
    process: impl Future<Output = Result<(), E>>,
) -> ExitCode {
    start_logging(logging.log_format, logging.log, audit);
    match run_to_the_end(process) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", error_chain::sentence(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// The largest number of threads that serve requests. One thread answers tens of thousands of requests per second
/// (`cargo xtask bench cached`), which is more than the pods of a large node send, and each thread takes memory.
const MAX_WORKERS: usize = 4;

fn run_to_the_end<E: std::error::Error + Send + Sync + 'static>(
    process: impl Future<Output = Result<(), E>>,
) -> anyhow::Result<()> {
    // SAFETY: this is the only thread, because the runtime does not exist yet.
    unsafe { memory::use_one_arena() };
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(processors.min(MAX_WORKERS))
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let result = runtime.block_on(process);
    // A blocking task that still runs (a DNS lookup, for example) must not keep the process alive.
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    Ok(result?)
}

fn start_logging(format: LogFormat, level: LogLevel, audit: Switch) {
    let level = match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    };
    // Only metaproxy's own messages are logged, because the SDK logs whole requests and responses, even in warnings.
    // Libraries return their failures as errors, which metaproxy logs.
    let audited = if audit == Switch::On { "info" } else { "off" };
    let filter = EnvFilter::new(format!("off,metaproxy={level},{}={audited}", AUDIT_TARGET));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_target(false).with_ansi(false).init(),
        LogFormat::Json => builder.json().init(),
    }
}
