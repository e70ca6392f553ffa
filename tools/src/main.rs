//! The `graviton` command.

fn main() -> std::process::ExitCode {
    graviton_tools::main()
}
