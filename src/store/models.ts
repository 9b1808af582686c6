// Which providers and models are known?

import type { ModelCallType } from '../generated/prisma/enums.ts';
import { type Db, type Pool, Sql } from './db.ts';

export type { ModelCallType };

/** A model, as the gateway's calls name it. */
export interface ModelKey {
  readonly providerId: string;
  readonly model: string;
  readonly type: ModelCallType;
}

export interface Provider {
  readonly id: string;
  readonly baseUrl: string;
  /** The environment variable that holds the key; the key itself is stored nowhere. */
  readonly apiKeyEnv: string;
  readonly concurrency: number;
}

export interface GivenProvider extends Provider {
  /** `probeCredits`: an exact decimal, as text. */
  readonly models: readonly (Omit<ModelKey, 'providerId'> & { readonly probeCredits?: string })[];
}

/**
 * Know these providers, and of each exactly these models and those discovered, in one transaction. What is known of a
 * model's status stays; providers that are not named stay as they are.
 */
export async function giveProviders(pool: Pool, providers: readonly GivenProvider[]): Promise<{ removed: number }> {
  const given = providers.flatMap(({ id, models }) => models.map((model) => ({ providerId: id, ...model })));
  const ids = providers.map(({ id }) => id);
  return pool.$transaction(async (db) => {
    await db.$executeRaw`
      insert into "ModelProvider" (id, "baseUrl", "apiKeyEnv", concurrency)
      select id, "baseUrl", "apiKeyEnv", concurrency
        from jsonb_to_recordset(${JSON.stringify(providers)}::jsonb)
          as g(id text, "baseUrl" text, "apiKeyEnv" text, concurrency int)
      on conflict (id) do update
         set "baseUrl" = excluded."baseUrl", "apiKeyEnv" = excluded."apiKeyEnv", concurrency = excluded.concurrency`;
    const removed = await db.$executeRaw`
      delete from "ModelStatus" s
       where "providerId" = any(${ids}::text[])
         and not exists (select from ${models(given)} where g."providerId" = s."providerId" and g.model = s.model and g.type = s.type)
         and (not discovered or exists (select from ${models(given)} where g."providerId" = s."providerId" and g.model = s.model))`;
    await db.$executeRaw`
      insert into "ModelStatus" as s ("providerId", model, type, "probeCredits")
      select "providerId", model, type, "probeCredits" from ${models(given)}
      on conflict ("providerId", model, type) do update set "probeCredits" = excluded."probeCredits", discovered = false`;
    return { removed };
  });
}

/** Know models that a provider's own list names and nobody has given; returns those that are new. */
export async function discoverModels(db: Db, found: readonly ModelKey[]): Promise<ModelKey[]> {
  return db.$queryRaw<ModelKey[]>`
    insert into "ModelStatus" ("providerId", model, type, discovered)
    select "providerId", model, type, true from ${models(found)}
     where not exists (select from "ModelStatus" s where s."providerId" = g."providerId" and s.model = g.model)
    on conflict do nothing
    returning "providerId", model, type::text as type`;
}

/** Forget a provider with its models, or one model of it; returns how many models that were. Their history stays for as long as any. */
export async function forgetModels(pool: Pool, providerId: string, model?: string): Promise<number> {
  return pool.$transaction(async (db) => {
    const forgotten = await db.$executeRaw`
      delete from "ModelStatus" where "providerId" = ${providerId} and (${model ?? null}::text is null or model = ${model ?? null})`;
    if (model === undefined) await db.$executeRaw`delete from "ModelProvider" where id = ${providerId}`;
    return forgotten;
  });
}

/** A provider, if it is known. */
export async function providerOf(db: Db, id: string): Promise<Provider | undefined> {
  const [provider] = await db.$queryRaw<Provider[]>`
    select id, "baseUrl", "apiKeyEnv", concurrency from "ModelProvider" where id = ${id}`;
  return provider;
}

export async function providerIds(db: Db): Promise<string[]> {
  const rows = await db.$queryRaw<{ id: string }[]>`select id from "ModelProvider" order by id`;
  return rows.map(({ id }) => id);
}

/** The models whose name, or `provider/name`, is one of these; all of them where there are no names. */
export async function modelsNamed(db: Db, names: readonly string[]): Promise<ModelKey[]> {
  return db.$queryRaw<ModelKey[]>`
    select "providerId", model, type::text as type from "ModelStatus"
     where ${names.length === 0} or model = any(${[...names]}::text[]) or "providerId" || '/' || model = any(${[...names]}::text[])
     order by "providerId" collate "C", model collate "C", type`;
}

/** Models as rows of `g`. They travel as one JSON: thousands of parameters would not. */
function models(rows: readonly (ModelKey & { probeCredits?: string })[]): Sql.Sql {
  return Sql.sql`jsonb_to_recordset(${JSON.stringify(rows)}::jsonb)
    as g("providerId" text, model text, type "ModelCallType", "probeCredits" numeric(20, 8))`;
}
