/** Where the command line writes. */
export interface CliOutput {
  out(text: string): void;
  err(text: string): void;
  /** Characters in a line of the help. */
  readonly columns: number;
}
