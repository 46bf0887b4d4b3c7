import type { EntropySource } from "../../backend/entropy/types.ts";
import type { EntropyOptions } from "../backend-factory.ts";
import { QomObject } from "../object-model/object.ts";
import { property, STR } from "../object-model/property.ts";
import type { TypeRegistry } from "../object-model/registry.ts";

const FILENAME = property("filename", { ...STR, name: "string" }, undefined, {
  description: "A file or device to read from; /dev/urandom if left out",
});

/** A source of random bytes, made with -object. */
export class RngBackendObject extends QomObject {
  /** Open from the start of the machine on. */
  source: EntropySource | undefined;

  get options(): EntropyOptions {
    if (!this.isA("rng-random")) return { type: "builtin" };
    return { type: "file", path: this.get(FILENAME) ?? "/dev/urandom", id: this.id ?? "" };
  }
}

export function registerEntropy(registry: TypeRegistry): void {
  registry.register({ name: "rng-backend", parent: "object", abstract: true, instanceClass: RngBackendObject });
  registry.register({ name: "rng-builtin", parent: "rng-backend", userCreatable: true });
  registry.register({
    name: "rng-random",
    parent: "rng-backend",
    userCreatable: true,
    classInit(klass) {
      klass.addProperties(FILENAME);
    },
  });
}
