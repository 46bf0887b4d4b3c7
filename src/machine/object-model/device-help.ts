import { CATEGORIES, type ObjectClass } from "./class.ts";
import { propertyHelp } from "./property.ts";
import type { TypeRegistry } from "./registry.ts";

/** What `-device help` prints: every device that can be asked for, by category. */
export function deviceListHelp(registry: TypeRegistry): string {
  const classes = registry.classes("device").filter((klass) => klass.userCreatable);
  const groups = CATEGORIES.map((category) => {
    const lines = classes.filter((klass) => klass.category === category).map(deviceLine);
    return lines.length === 0 ? "" : [`${category} devices:`, ...lines, ""].join("\n");
  });
  return groups.filter((group) => group !== "").join("\n");
}

function deviceLine(klass: ObjectClass): string {
  const { alias, description } = klass.info;
  const parts = [`name "${klass.name}"`];
  if (klass.busType !== undefined) parts.push(`bus ${klass.busType}`);
  if (alias !== undefined) parts.push(`alias "${alias}"`);
  if (description !== undefined) parts.push(`desc "${description}"`);
  return parts.join(", ");
}

/** What `-device NAME,help` prints. @throws UsageError for a name that is no device */
export function deviceHelp(registry: TypeRegistry, name: string): string {
  return classHelp(registry.deviceClass(name));
}

/** What `-object help` prints. */
export function objectListHelp(registry: TypeRegistry): string {
  const names = registry.objectClasses().map((klass) => `  ${klass.name}\n`);
  return `List of user creatable objects:\n${names.join("")}`;
}

/** What `-object NAME,help` prints. @throws UsageError for a name that is no object type */
export function objectHelp(registry: TypeRegistry, name: string): string {
  return classHelp(registry.objectClass(name));
}

function classHelp(klass: ObjectClass): string {
  const lines = klass.properties.map(propertyHelp).sort((a, b) => (a < b ? -1 : 1));
  if (lines.length === 0) return `There are no options for ${klass.name}.\n`;
  return `${[`${klass.name} options:`, ...lines].join("\n")}\n`;
}
